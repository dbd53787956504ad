"""The logged values of a run, merged over its interruptions."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
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


def by_epoch(series: Series, steps_per_epoch: int) -> Series:
    """The mean of the values logged in each epoch, counted from 1; epochs without any are left out."""
    epochs: dict[int, list[float]] = {}
    for step, value in zip(*series, strict=True):
        epochs.setdefault(int(step) // steps_per_epoch + 1, []).append(value)
    return [float(epoch) for epoch in epochs], [sum(values) / len(values) for values in epochs.values()]


def first_within(series: Series, share: float) -> float | None:
    """The first step whose value is within ``share`` of the highest one; None without values."""
    steps, values = series
    return next((s for s, v in zip(steps, values, strict=True) if v >= (1 - share) * max(values)), None)


def spread(histories: Sequence[Mapping[str, Series]], name: str) -> dict[str, Series]:
    """Of a quantity that several runs have logged at the same steps, the mean, the lowest and the highest."""
    columns: dict[float, list[float]] = {}
    for history in histories:
        for step, value in zip(*history.get(name, ([], [])), strict=True):
            columns.setdefault(step, []).append(value)
    whole = {step: values for step, values in columns.items() if len(values) == len(histories)}
    return {
        label: (list(whole), [of(values) for values in whole.values()])
        for label, of in (("mean", statistics.mean), ("lowest", min), ("highest", max))
    }


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
