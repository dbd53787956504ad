"""The figures that `evaluate` has left in a run's folder, as long as they are of the weights there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.files import read_object
from models.runs.export import hashes_now
from models.runs.layout import RunLayout


def read_figures(layout: RunLayout, split: str) -> tuple[dict[str, float], str]:
    """The figures of ``split`` by name, and why there are none where they are of weights that are gone.

    Figures that do not say of which weights they are, or are of priors that lie elsewhere now, are taken as
    they are. For example, after `evaluate` and a longer training: ``({}, "evaluation-test.json is of ...")``.
    """
    file = layout.evaluation(split)
    if not file.is_file():
        return {}, ""
    values: dict[str, Any] = read_object(file, "evaluate again")
    origin = values.get("of")
    if isinstance(origin, dict):
        changed = _changed(layout, origin)
        if changed:
            command = f"python -m models evaluate {layout.folder}"
            command += f" --split {split}" if split != "test" else ""
            command += f" --prior {origin['prior']}" if origin.get("prior") else ""
            return {}, f"{file.name} is of earlier weights of {changed} and not shown; renew it: {command}"
    return {name: value for name, value in values.items() if isinstance(value, float)}, ""


def _changed(layout: RunLayout, origin: dict[str, Any]) -> Path | None:
    """The folder of the run, or of the priors, whose weights are others than those in ``origin``."""
    weights, prior = origin.get("weights"), origin.get("prior")
    if weights and [weights] != hashes_now(layout.folder):
        return layout.folder
    if prior and Path(prior).is_dir() and origin.get("prior_weights") != hashes_now(prior):
        return Path(prior)
    return None
