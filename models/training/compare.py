"""Several runs beside each other: settings that differ, what was reached, and the curves in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.evaluation.metrics import is_better_higher
from models.evaluation.pictures import save_curves
from models.evaluation.tables import Row, write_table
from models.runs.config import PriorConfig, TrainConfig
from models.runs.history import Series, read_history
from models.runs.layout import RunLayout
from models.runs.loop import LoopConfig
from models.runs.measured import read_figures
from models.settings import format_value, read_yaml


def compare(runs: Sequence[str | Path], folder: str | Path) -> list[str]:
    """Write ``settings`` and ``figures`` (each .md and .csv) and ``curves.png`` into ``folder``; their texts.

    runs: folders of at least two runs of `train`, or of `train-prior`. Figures are those of the test split
    where `evaluate` has written them of the weights that the run has now, and the best that was logged in
    validation. Raises FileNotFoundError or ValueError.
    """
    if len(runs) < 2:
        raise ValueError(f"runs is of {len(runs)} folders; accepted: at least 2")
    layouts = {label: RunLayout(path) for label, path in _labels([Path(run) for run in runs]).items()}
    configs = {label: _settings(layout) for label, layout in layouts.items()}
    histories = {label: read_history(layout.folder) for label, layout in layouts.items()}
    target = Path(folder)
    differing: list[Row] = []
    for name in dict.fromkeys(name for config in configs.values() for name in vars(config)):
        values = {label: format_value(getattr(config, name, "")) for label, config in configs.items()}
        if len(set(values.values())) > 1 and name not in ("name", "runs"):
            differing.append({"setting": name} | values)
    texts = [write_table(target, "settings", differing or [{"setting": "none differs"}])]
    measured = {label: read_figures(layout, "test") for label, layout in layouts.items()}
    reached = {label: _figures(measured[label][0], histories[label]) for label in layouts}
    outdated = "\n".join(reason for _, reason in measured.values() if reason)
    names = dict.fromkeys(name for figures in reached.values() for name in figures)
    rows: list[Row] = [
        {"figure": name} | {label: figures.get(name, "") for label, figures in reached.items()}
        for name in names
    ]
    if rows:
        texts.append(write_table(target, "figures", rows, outdated))
        panels = _panels(histories)
        if panels:
            save_curves(target / "curves.png", panels, caption="validation")
    elif outdated:
        texts.append(outdated)
    return texts


def _labels(folders: Sequence[Path]) -> dict[str, Path]:
    """A short name for each folder: its own, or all of it where that is the name of two."""
    names = [folder.resolve().name for folder in folders]
    labels = [
        name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)
    ]
    if len(set(labels)) < len(labels):
        raise ValueError(f"runs holds {max(labels, key=labels.count)} twice; accepted: different folders")
    return dict(zip(labels, folders, strict=True))


def _settings(layout: RunLayout) -> LoopConfig:
    if not layout.config.is_file():
        raise FileNotFoundError(f"{layout.config} does not exist; give the folder of a run")
    kind: type[LoopConfig] = PriorConfig if "codes" in read_yaml(layout.config) else TrainConfig
    return kind.of_run(layout.config)


def _figures(measured: Mapping[str, float], history: Mapping[str, Series]) -> dict[str, float]:
    """What `evaluate` measured on the test split, and the best value of each quantity in validation."""
    figures = {f"test {name}": value for name, value in measured.items()}
    for name, (_, values) in sorted(history.items()):
        split, _, quantity = name.partition("/")
        if split == "validation" and values:
            best = max if is_better_higher(quantity) else min
            figures[f"best validation {quantity}"] = best(values)
    return figures


def _panels(histories: Mapping[str, Mapping[str, Series]]) -> dict[str, dict[str, Series]]:
    """By quantity, the validation curve of each run that has it."""
    names = sorted(
        {name for history in histories.values() for name in history if name.startswith("validation/")}
    )
    return {
        name.removeprefix("validation/"): {
            label: history[name] for label, history in histories.items() if name in history
        }
        for name in names
    }
