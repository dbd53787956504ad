"""Which model and which classes a prior belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.codes.store import CodeDescription
from models.pretrained import WEIGHTS_FILE, weights_hash

if TYPE_CHECKING:
    from models.priors.base import AutoregressivePrior


def model_folder(folder: str | Path) -> Path:
    """The folder to load a model from, given that of its run or itself."""
    inside = Path(folder) / "model"
    return inside if inside.is_dir() else Path(folder)


def check_prior_of(prior: str | Path, model: str | Path) -> None:
    """ValueError unless the prior in folder ``prior`` was trained on codes of the weights in ``model``."""
    description = CodeDescription.load(Path(prior))
    folder = model_folder(model)
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"{folder / WEIGHTS_FILE} does not exist; give the run of the model whose codes the prior in "
            f"{prior} was trained on (for `sample`: --model RUN)"
        )
    if not description.weights or description.weights == weights_hash(folder):
        return
    if description.model and folder.resolve() == Path(description.model).resolve():
        raise ValueError(
            f"the weights in {folder} have changed since the prior in {prior} was trained on their codes; "
            "encode again (--overwrite) and train the prior on the new codes"
        )
    raise ValueError(
        f"the prior in {prior} was trained on codes of {description.model}, not of {model}; give that "
        "model, or encode with this one and train a prior on its codes"
    )


def check_classes(
    prior: str | Path, priors: Sequence[AutoregressivePrior], data: str, class_names: Sequence[str]
) -> None:
    """ValueError unless the classes of ``data`` are, in order, those that a conditional prior knows."""
    known = CodeDescription.load(Path(prior)).class_names
    if priors[0].num_classes is not None and tuple(class_names) != known:
        raise ValueError(
            f"the prior in {prior} was trained with the classes {_listed(known)}, but {data} has "
            f"{_listed(class_names)}; give data with the same labels (--label-column), or train another prior"
        )


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "no labels"
