"""The logged values of a run, merged over its interruptions."""

from __future__ import annotations

import csv
from pathlib import Path

Series = tuple[list[float], list[float]]  # steps, values


def read_history(folder: Path) -> dict[str, Series]:
    """Every logged quantity of the run in ``folder``: (steps, values), in order of steps.

    A resumed run logs again the steps between its checkpoint and the interruption; the later log counts.
    """
    values: dict[str, dict[int, float]] = {}
    versions = sorted((folder / "logs").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    for version in versions:
        file = version / "metrics.csv"
        if not file.is_file():
            continue  # interrupted before its first row
        with open(file, newline="") as handle:
            for row in csv.DictReader(handle):
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        values.setdefault(name, {})[int(row["step"])] = float(text)
    return {name: (list(map(float, sorted(found))), [found[step] for step in sorted(found)])
            for name, found in values.items()}  # fmt: skip
