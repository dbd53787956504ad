"""The figures that `evaluate` has left in a run's folder, as long as they are of the weights there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.files import read_object
from models.runs.export import hashes_now
from models.runs.layout import RunLayout
from models.runs.pictures import Hashes


def read_figures(layout: RunLayout, split: str, now: Hashes = hashes_now) -> tuple[dict[str, float], str]:
    """The figures of ``split`` by name, and why there are none where they are of weights that are gone.

    Figures that do not say of which weights they are, or are of priors that lie elsewhere now, are taken as
    they are. now: gives the hashes of a run's weights. For example, after `evaluate` and a longer training:
    ``({}, "evaluation-test.json is of ...")``.
    """
    file = layout.evaluation(split)
    if not file.is_file():
        return {}, ""
    values: dict[str, Any] = read_object(file, "evaluate again")
    origin = values.get("of")
    if isinstance(origin, dict):
        changed = _changed(layout, origin, now)
        if changed:
            command = f"python -m models evaluate {layout.folder}"
            command += f" --split {split}" if split != "test" else ""
            command += f" --prior {origin['prior']}" if origin.get("prior") else ""
            return {}, f"{file.name} is of earlier weights of {changed} and not shown; renew it: {command}"
    return {name: value for name, value in values.items() if isinstance(value, float)}, ""


def keep_figures(
    file: Path, figures: dict[str, float | str], origin: dict[str, Any]
) -> tuple[dict[str, float | str], dict[str, Any], str]:
    """``figures`` and ``origin``, to be written into ``file``, with what still holds there, and words on it.

    What an earlier `evaluate` had beyond these figures, of priors or for rFID, holds for the same weights and
    the same images; figures of priors as long as these have the same weights.
    """
    try:
        earlier: dict[str, Any] = read_object(file, "evaluate again") if file.is_file() else {}
    except ValueError:  # what is damaged is replaced
        return figures, origin, ""
    before = earlier.get("of")
    own = [name for name, value in earlier.items() if isinstance(value, float)]
    others = [name for name in own if not isinstance(figures.get(name), float)]
    if not others or not isinstance(before, dict):
        return figures, origin, ""
    if any(before.get(name) != origin[name] for name in ("weights", "digest", "split")):
        return figures, origin, ""
    kept: dict[str, float] = {}
    notes: list[str] = []
    for setting, command in (("prior", "--prior"), ("fid_weights", "--fid-weights")):
        names = [name for name in others if (name == "rfid") == (setting == "fid_weights")]
        place = before.get(setting)
        if not names or not place or origin[setting]:
            continue
        if setting == "prior" and _prior_changed(before):
            notes.append(f"those of {place}, whose weights have changed, are gone: {', '.join(names)}")
            continue
        kept |= {name: earlier[name] for name in names}
        origin = origin | {name: before[name] for name in (setting, f"{setting}_weights") if name in before}
        notes.append(f"{', '.join(names)} of the earlier evaluation with {command} {place} are kept")
    return figures | kept, origin, "; ".join(notes)


def _changed(layout: RunLayout, origin: dict[str, Any], now: Hashes) -> Path | None:
    """The folder of the run, or of the priors, whose weights are others than those in ``origin``."""
    weights = origin.get("weights")
    if weights and [weights] != now(layout.folder):
        return layout.folder
    return Path(origin["prior"]) if _prior_changed(origin, now) else None


def _prior_changed(origin: dict[str, Any], now: Hashes = hashes_now) -> bool:
    """Whether the priors in ``origin`` are still there, with other weights."""
    prior = origin.get("prior")
    return bool(prior and Path(prior).is_dir() and origin.get("prior_weights") != now(prior))
