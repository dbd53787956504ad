"""What the figures of a run were measured on, to be stored beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.data import ImageData
from models.data.sources import location
from models.pretrained import weights_hash
from models.runs.export import usable_model
from models.runs.open import prior_levels


def provenance(
    run: str | Path, data: ImageData, split: str, prior: str | Path | None = None
) -> dict[str, Any]:
    """Images, model and priors by place and by hash, as values for JSON.

    run, prior: folders of the trained run, and of the priors if any. split: which of ``data`` was measured.
    """
    return {
        "data": location(data.name),
        "settings": data.settings,
        "split": split,
        "images": len(data.split(split)),
        "digest": data.split(split).digest(),
        "variance": data.variance,
        "run": str(Path(run).resolve()),
        "weights": weights_hash(usable_model(run)),
        "prior": str(Path(prior).resolve()) if prior else None,
        "prior_weights": [weights_hash(level) for level in prior_levels(prior)] if prior else [],
    }
