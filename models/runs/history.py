"""The logged values of a run, merged over its interruptions."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from models.runs.layout import RunLayout

Series = tuple[list[float], list[float]]  # steps, values


def read_history(folder: Path) -> dict[str, Series]:
    """Every logged quantity of the run in ``folder``: (steps, values), in order of steps.

    A resumed run logs again the steps between its checkpoint and the interruption; the later log counts.
    """
    points: dict[str, dict[int, float]] = {}
    for version in _versions(RunLayout(folder).logs):
        file = version / "metrics.csv"
        if not file.is_file():
            continue  # interrupted before its first row
        with open(file, newline="", encoding="utf-8", errors="replace") as handle:
            for row in csv.DictReader(handle):
                step = _number(row.get("step"))
                for name, text in row.items():
                    value = _number(text)
                    if step is not None and value is not None and name not in ("step", "epoch", None):
                        points.setdefault(name, {})[int(step)] = value
    return {name: _series(by_step) for name, by_step in points.items()}


def curves_of(history: Mapping[str, Series], quantity: str) -> dict[str, Series]:
    """The logged values of one quantity by label: ``"top level, train"``, or the split if there is one level.

    Args:
        history: by logged name, such as ``"validation/perplexity_top"``.
        quantity: the name without split and level, such as ``"perplexity"``.
    """
    curves = {}
    for name in sorted(history):
        split, _, logged = name.partition("/")
        if logged != quantity and not logged.startswith(f"{quantity}_"):
            continue
        level = logged.removeprefix(quantity).removeprefix("_")
        curves[f"{level} level, {split}" if level else split] = history[name]
    return curves


def _series(by_step: dict[int, float]) -> Series:
    steps = sorted(by_step)
    return [float(step) for step in steps], [by_step[step] for step in steps]


def _versions(logs: Path) -> list[Path]:
    """The folders of logs in the order of their starts; copies of them that lie beside are none."""
    numbers = [path.name.removeprefix("version_") for path in logs.glob("version_*")]
    return [logs / f"version_{number}" for number in sorted(filter(str.isdecimal, numbers), key=int)]


def _number(text: object) -> float | None:
    """The number of a cell; None for an empty one, and for one that a killed process left cut off."""
    try:
        return float(str(text)) if text else None
    except ValueError:
        return None
