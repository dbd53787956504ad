"""Many runs of one model: over a grid or a list of settings, in one folder, with one table and one figure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.evaluation import evaluate as measures
from models.evaluation.metrics import is_better_higher
from models.evaluation.pictures import save_curves
from models.evaluation.tables import Row, write_table
from models.runs.config import TrainConfig
from models.settings import check_applies, convert_value, format_value, setting_types
from models.training.finished import TrainedRun, trained_run

if TYPE_CHECKING:
    from models.data import ImageData

Case = Mapping[str, Any]  # settings by name, in their types
_SHOWN = ("loss", "mse", "nmse", "psnr", "perplexity", "usage", "bits_per_dim", "bits_per_dim_uniform")


@dataclass(frozen=True)
class Swept:
    """One run of a sweep: what it was made with beside the shared settings, and what was measured."""

    case: Case
    run: TrainedRun
    figures: Mapping[str, float]


def grid(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of each setting."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def parse_cases(grids: Sequence[str], cases: Sequence[str]) -> list[dict[str, Any]]:
    """The cases that ``SETTING=VALUE,VALUE,...`` span together, then each ``SETTING=VALUE SETTING=VALUE``.

    The values of a setting that is a list itself are separated by ``;``. Raises ValueError.
    """
    types = setting_types(TrainConfig)

    def split(text: str) -> tuple[str, str]:
        name, sign, values = text.partition("=")
        if not sign or name not in types or name in ("name", "runs"):
            raise ValueError(f"{text!r} sets no setting of train; accepted: SETTING=VALUE, such as beta=0.25")
        return name, values

    spanned: dict[str, list[Any]] = {}
    for text in grids:
        name, values = split(text)
        if name in spanned:
            raise ValueError(f"{name} is in the grid twice; accepted: once, with all its values")
        separator = ";" if getattr(types[name], "__origin__", None) is tuple else ","
        spanned[name] = [convert_value(value, types[name], name, "grid") for value in values.split(separator)]
    all_cases = grid(spanned) if spanned else []
    for text in cases:
        pairs = [split(part) for part in text.split()]
        all_cases.append({name: convert_value(value, types[name], name, "case") for name, value in pairs})
    if not all_cases:
        raise ValueError("a sweep has no cases; accepted: --grid SETTING=VALUE,VALUE or --case SETTING=VALUE")
    return all_cases


def case_name(case: Case) -> str:
    """``beta0.25-lr0.001``: the name of the run of a case."""
    parts = [f"{name}{_cell(value)}".replace("/", "_").replace(",", "_") for name, value in case.items()]
    return "-".join(parts)


def sweep(
    config: TrainConfig,
    cases: Sequence[Case],
    data: ImageData,
    *,
    by: str = "mse",
    split: str = "validation",
    overwrite: bool = False,
    device: str = "cpu",
    say: Callable[[str], object] = print,
) -> list[Swept]:
    """Train ``config`` with each of ``cases`` and measure it on ``split``; best first by the figure ``by``.

    The runs lie in ``RUNS/NAME``, those that are there are not trained again, and interrupted ones go on.
    With other settings than before they are replaced with ``overwrite`` alone: ValueError otherwise. Also
    for a case with a setting that its model does not have.
    """
    configs = []
    for case in cases:
        changed = config.replace(runs=str(config.folder), name=case_name(case), **case)
        check_applies(changed, case, f"case {case_name(case)}")
        configs.append(changed)
    names = [changed.name for changed in configs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the case {name} is given {names.count(name)} times; accepted: once")
    swept = []
    for case, changed in zip(cases, configs, strict=True):
        run = trained_run(changed, data, overwrite=overwrite, device=device, say=say)
        figures = measures.evaluate(
            run.model, data, split=split, device=device, batch_size=changed.batch_size
        )
        if by not in figures or not isinstance(figures[by], float):
            accepted = ", ".join(name for name, value in figures.items() if isinstance(value, float))
            raise ValueError(f"by is {by!r}; accepted: {accepted}")
        swept.append(Swept(case, run, {k: v for k, v in figures.items() if isinstance(v, float)}))
    return sorted(swept, key=lambda one: one.figures[by], reverse=is_better_higher(by))


def write_sweep(folder: Path, swept: Sequence[Swept], data: ImageData, split: str, by: str) -> str:
    """``sweep.md``, ``sweep.csv`` and ``sweep.png`` in ``folder``; returns the table.

    The figure has a line for each run, in the order of the table, of the quantities that all of them log.
    """
    drawn = [name for name, figure in data.kind.figures.items() if figure.is_drawn]
    shown = [name for name in swept[0].figures if name.startswith((*_SHOWN, *drawn))]
    rows: list[Row] = []
    for one in swept:
        row: dict[str, Any] = {"run": one.run.config.name}
        row |= {name: _cell(value) for name, value in one.case.items()}
        rows.append(row | {name: one.figures[name] for name in shown if name in one.figures})
    caption = f"{split.capitalize()} split of {data.name}, best {by} first."
    table = write_table(folder, "sweep", rows, caption)
    panels: dict[str, dict[str, Any]] = {}
    for name in ("loss", "reconstruction", "kl", "perplexity", *drawn):
        lines = {one.run.config.name: one.run.history.get(f"validation/{name}") for one in swept}
        panels[name] = {label: series for label, series in lines.items() if series}
    save_curves(folder / "sweep.png", panels, caption=f"{data.name}, validation split")
    return table


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value)
