"""Many runs of one model: over a grid or a list of settings, in one folder, with one table and one figure."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.data.settings import DataConfig
from models.evaluation import evaluate as measures
from models.evaluation.metrics import is_better_higher
from models.evaluation.pictures import save_curves
from models.evaluation.tables import Row, write_table
from models.runs.config import TrainConfig
from models.settings import check_applies, closest, convert_value, format_value, setting_types
from models.training.finished import TrainedRun, check_run, trained_run

if TYPE_CHECKING:
    from models.data import ImageData
    from models.data.images import ImageSplit

Case = Mapping[str, Any]  # settings by name, in their types
_SHOWN = ("loss", "mse", "nmse", "psnr", "perplexity", "usage", "bits_per_dim", "bits_per_dim_uniform")


@dataclass(frozen=True)
class Swept:
    """One run of a sweep: what it was made with beside the shared settings, and what was measured."""

    case: Case
    run: TrainedRun
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Diverged:
    """A case whose loss or weights became infinite or not a number: nothing can be measured of it.

    reason: the message, which names the step.
    """

    case: Case
    config: TrainConfig
    reason: str


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
        if sign and name not in types:
            raise ValueError(f"{text!r}: unknown setting {name!r}; {closest(name, types)}")
        if not sign or name in ("name", "runs"):
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
    on_diverged: Callable[[Diverged], object] | None = None,
) -> list[Swept]:
    """Train ``config`` with each of ``cases`` and measure it on ``split``; best first by the figure ``by``.

    The runs lie in ``RUNS/NAME``, those that are there are not trained again, and interrupted ones go on.
    With other settings than before they are replaced with ``overwrite`` alone: ValueError otherwise. Also
    for a case with a setting that its model does not have, of data other than ``data``, or with a model that
    does not take them or has no figure ``by``: before anything is trained.

    on_diverged: is told of a case that diverges, and the others go on; by default FloatingPointError.
    """
    configs = []
    for case in cases:
        changed = config.replace(runs=str(config.folder), name=case_name(case), **case)
        check_applies(changed, case, f"case {case_name(case)}")
        others = [
            name for name in setting_types(DataConfig) if getattr(changed, name) != getattr(config, name)
        ]
        if others:
            raise ValueError(
                f"case {case_name(case)} sets {others[0]}, but all runs of a sweep share their data; "
                f"accepted: settings of the model and of training; set {others[0]} for all of them"
            )
        configs.append(changed)
    names = [changed.name for changed in configs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the case {name} is given {names.count(name)} times; accepted: once")
    _check_figure(by, configs, data, split, overwrite)
    swept = []
    for case, changed in zip(cases, configs, strict=True):
        try:
            run = trained_run(changed, data, overwrite=overwrite, device=device, say=say)
        except FloatingPointError as error:
            if on_diverged is None:
                raise
            say(f"{changed.name} diverged: {error}")
            on_diverged(Diverged(case, changed, str(error)))
            continue
        figures = measures.evaluate(
            run.model, data, split=split, device=device, batch_size=changed.batch_size
        )
        swept.append(Swept(case, run, {k: v for k, v in figures.items() if isinstance(v, float)}))
    return sorted(swept, key=lambda one: _rank(one.figures[by], is_better_higher(by)))


def _check_figure(
    by: str, configs: Sequence[TrainConfig], data: ImageData, split: str, overwrite: bool
) -> None:
    """ValueError if one of the runs cannot start, or has no figure ``by``, untrained and on one image."""
    image: Any = _First(data.split(split))
    first = dataclasses.replace(data, train=image, validation=image, test=image, known_variance=data.variance)
    for config in configs:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            try:
                model = check_run(config, data, overwrite=overwrite)
            except ValueError as error:
                raise ValueError(f"case {config.name}: {error}") from error
            figures = measures.evaluate(model, first, split=split)
        if not isinstance(figures.get(by), float):
            accepted = ", ".join(name for name, value in figures.items() if isinstance(value, float))
            raise ValueError(f"by is {by!r}; accepted: {accepted}")


class _First:
    """The first item of a split, as a split."""

    def __init__(self, split: ImageSplit) -> None:
        self.cached, self.size, self.channels, self.kind = True, split.size, split.channels, split.kind
        self.batch, self.batch_labels = split.batch, split.batch_labels

    def __len__(self) -> int:
        return 1


def _rank(figure: float, is_better_higher: bool) -> tuple[bool, float]:
    """What runs are sorted by: what is not a number comes last."""
    return math.isnan(figure), -figure if is_better_higher else figure


def write_sweep(
    folder: Path,
    swept: Sequence[Swept],
    data: ImageData,
    split: str,
    by: str,
    diverged: Sequence[Diverged] = (),
) -> str:
    """``sweep.md``, ``sweep.csv`` and ``sweep.png`` in ``folder``; returns the table.

    Runs that diverged stand below the others, and a column ``state`` says so. The figure has a line for each
    other run, in the order of the table, of the quantities that all of them log.
    """
    drawn = [name for name, figure in data.kind.figures.items() if figure.is_drawn]
    figures = swept[0].figures if swept else {}
    shown = [name for name in figures if name.startswith((*_SHOWN, *drawn))]
    rows: list[Row] = []
    for one in swept:
        row: dict[str, Any] = {"run": one.run.config.name}
        row |= {name: _cell(value) for name, value in one.case.items()}
        row |= {"state": "trained"} if diverged else {}
        rows.append(row | {name: one.figures[name] for name in shown if name in one.figures})
    for lost in diverged:
        row = {"run": lost.config.name} | {name: _cell(value) for name, value in lost.case.items()}
        rows.append(row | {"state": "diverged"})
    caption = f"{split.capitalize()} split of {data.name}, best {by} first."
    table = write_table(folder, "sweep", rows, caption)
    panels: dict[str, dict[str, Any]] = {}
    for name in ("loss", "reconstruction", "kl", "perplexity", *drawn):
        lines = {one.run.config.name: one.run.history.get(f"validation/{name}") for one in swept}
        panels[name] = {label: series for label, series in lines.items() if series}
    if not swept:  # a figure of earlier runs would not be of this table
        (folder / "sweep.png").unlink(missing_ok=True)
        return table
    save_curves(folder / "sweep.png", panels, caption=f"{data.name}, validation split")
    return table


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else format_value(value)
