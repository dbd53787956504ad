"""Which model a prior belongs to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from models.data.codes import CodeDescription
from models.pretrained import WEIGHTS_FILE


def model_folder(folder: str | Path) -> Path:
    """The folder to load a model from, given that of its run or itself."""
    inside = Path(folder) / "model"
    return inside if inside.is_dir() else Path(folder)


def check_prior_of(prior: str | Path, model: str | Path) -> None:
    """ValueError unless the prior in folder ``prior`` was trained on codes of the weights in ``model``."""
    description = CodeDescription.load(Path(prior))
    weights = model_folder(model) / WEIGHTS_FILE
    if description.weights and description.weights != hashlib.sha256(weights.read_bytes()).hexdigest():
        raise ValueError(
            f"the prior in {prior} was trained on codes of {description.model}, not of {model}; give that "
            "model, or encode with this one and train a prior on its codes"
        )
