"""The logged values of a run, merged over its interruptions."""

from __future__ import annotations

import csv
from pathlib import Path

from models.runs.layout import RunLayout

Series = tuple[list[float], list[float]]  # steps, values


def read_history(folder: Path) -> dict[str, Series]:
    """Every logged quantity of the run in ``folder``: (steps, values), in order of steps.

    A resumed run logs again the steps between its checkpoint and the interruption; the later log counts.
    """
    points: dict[str, dict[int, float]] = {}
    versions = RunLayout(folder).logs.glob("version_*")
    for version in sorted(versions, key=lambda path: int(path.name.split("_")[1])):
        file = version / "metrics.csv"
        if not file.is_file():
            continue  # interrupted before its first row
        with open(file, newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        points.setdefault(name, {})[int(row["step"])] = float(text)
    return {name: _series(by_step) for name, by_step in points.items()}


def _series(by_step: dict[int, float]) -> Series:
    steps = sorted(by_step)
    return [float(step) for step in steps], [by_step[step] for step in steps]
