"""What the studies share: their options, runs that are trained once and kept, and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.evaluation.tables import Row, write_table
from models.progress import progress_bar
from models.runs.config import PriorConfig, TrainConfig
from models.runs.rules import PLACE_SETTINGS, check_name
from models.settings import format_value
from models.studies.stored import check_study, rules_of_study, store_study
from vq_kernels.checks import check_choice, check_integer

if TYPE_CHECKING:
    from torch import Tensor

    from models.codes.store import CodeStore
    from models.data import ImageData
    from models.priors.base import AutoregressivePrior
    from models.training.finished import TrainedRun
    from models.training.sweep import Swept

SCALES = ("small", "real", "paper")
# The options that are settings of every model a study trains.
_MODEL_SETTINGS = ("data", "limit", "size", "label_column", "epochs", "batch_size")
# What a figure says of the runs in it, and how.
_CAPTION = {
    "seed": "seed",
    "batch_size": "batch size",
    "lr": "learning rate",
    "codebook_size": "K =",
    "embedding_dim": "D =",
    "beta": "beta =",
}


@dataclass(frozen=True)
class StudyOptions:
    """What `reproduce` takes; ``None`` means: as the scale has it.

    name: of the folder in ``runs``. overwrite: replace what is there with other settings. seed: of every
    model, prior and sample; with ``seeds`` the first of them. seeds: runs to average over, at least 1.
    batch_size: of every model and prior. Each of the last two only for a study whose ``OPTIONS`` name it.
    """

    data: str | None = None
    scale: str = "small"
    runs: str = "runs"
    seed: int = 0
    name: str | None = None
    overwrite: bool = False
    seeds: int | None = None
    limit: int | None = None
    size: str | None = None
    label_column: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accelerator: str = "auto"
    precision: str | None = None
    progress: bool = True


class Runner:
    """Trains what a study asks for under ``RUNS/NAME`` and writes its tables there.

    NAME is ``reproduce-STUDY-SCALE``, with a seed other than 0 ``reproduce-STUDY-SCALE-seedN``, unless the
    options say another. A run that is already there with the same settings is loaded, and one that was
    interrupted goes on from its last checkpoint, so that a study goes on where it stopped. What is there with
    other settings is replaced with ``overwrite`` alone.
    """

    def __init__(
        self,
        study: str,
        options: StudyOptions,
        settings: Mapping[str, Mapping[str, Any]],
        extra_options: Sequence[str],
        seeds: int = 1,
        kinds: Sequence[str] = ("image",),
    ) -> None:
        """Check the options and open the data.

        settings: of the study's models, by scale. extra_options: the study's ``OPTIONS``. seeds: runs that
        the study averages over. kinds: of data that it takes. Raises ValueError, also where the
        folder holds a study of other settings.
        """
        from models.data import load_data
        from models.runs.device import find_device

        _check_options(study, options, extra_options)
        check_choice(tuple(settings), scale=options.scale)
        self.options = options
        own_folder = f"-seed{options.seed}" if options.seed else ""
        name = f"reproduce-{study}-{options.scale}{own_folder}" if options.name is None else options.name
        check_name(name)
        self.folder = Path(options.runs) / name
        overrides = {name: getattr(options, name) for name in _MODEL_SETTINGS}
        model_settings = {name: value for name, value in overrides.items() if value is not None}
        self.given = model_settings  # of the options, which go before those of the scale
        loop = {name: getattr(options, name) for name in ("accelerator", "progress", "seed")}
        loop |= {"precision": options.precision} if options.precision is not None else {}
        self.shared: dict[str, Any] = {"runs": str(self.folder)} | loop
        self.settings = {"precision": "32-true", **settings[options.scale], **self.shared, **model_settings}
        self.settings |= rules_of_study(self.folder)
        check_real_data(options, self.settings["data"])
        self.config = TrainConfig(**self.settings)
        made_with = {"study": study, "scale": options.scale, "seeds": seeds} | self.settings
        stored = {
            name: format_value(value) for name, value in made_with.items() if name not in PLACE_SETTINGS
        }
        check_study(self.folder, stored, options.overwrite)
        self.data: ImageData = load_data(self.config, progress=options.progress)
        if self.data.kind.name not in kinds:
            raise ValueError(
                f"data is {self.config.data!r}, of kind {self.data.kind.name}; "
                f"accepted: of kind {' or '.join(kinds)} for {study}"
            )
        store_study(self.folder, stored)
        self.say(self.data.describe())
        self.device = find_device(options.accelerator)

    def train(self, name: str, data: ImageData | None = None, **changes: Any) -> TrainedRun:
        """The run ``name`` with ``changes`` to the study's settings, on ``data``, by default the study's."""
        from models.training.finished import trained_run

        config = TrainConfig(**self.settings | {"name": name} | changes)
        how: dict[str, Any] = {"overwrite": self.options.overwrite, "device": self.device, "say": self.say}
        return trained_run(config, self.data if data is None else data, **how)

    def sweep(self, cases: Sequence[Mapping[str, Any]], limit: int | None) -> list[Swept]:
        """:func:`models.training.sweep.sweep` of the study's settings over ``cases``, best first.

        limit: of the images of each split that it is done on.
        """
        from models.data import load_data
        from models.training.sweep import sweep

        place = Path(self.settings["runs"])
        config = TrainConfig(
            **self.settings | {"runs": str(place.parent), "name": place.name, "limit": limit}
        )
        data = self.data if limit == self.config.limit else load_data(config, progress=self.options.progress)
        how: dict[str, Any] = {"overwrite": self.options.overwrite, "device": self.device, "say": self.say}
        return sweep(config, cases, data, **how)

    def train_priors(
        self, run: TrainedRun, name: str, store: CodeStore | None = None, **settings: Any
    ) -> tuple[CodeStore, list[AutoregressivePrior]]:
        """Priors over the codes of ``run``, top level first, and the store of codes.

        store: of the codes, by default that of the study's data. With the setting ``level`` the prior of that
        level alone.
        """
        from models.codes.description import CodeDescription
        from models.runs.build import trained_levels
        from models.runs.open import load_pretrained
        from models.training.finished import how_to_start, is_same_run
        from models.training.prior import train_prior

        overrides = {name: getattr(self.options, name) for name in ("epochs", "batch_size")}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        layout = run.config.layout
        config = PriorConfig(**self.shared | {"name": name, "codes": str(layout.codes)} | settings)
        store = self.encode(run) if store is None else store
        # A prior keeps the description of its codes: another run of the model makes it out of date.
        is_same = (
            is_same_run(config, self.options.overwrite)
            and config.layout.description.is_file()
            and CodeDescription.load(config.folder).difference(store.description) is None
        )
        levels = [config.layout.level(number) for number in trained_levels(config, store.description)]
        if is_same and config.layout.is_finished(levels):
            loaded: list[Any] = [load_pretrained(level, self.device) for level in levels]
            return store, loaded
        self.say(f"training {name}")
        start = how_to_start(config, is_same)
        priors: list[Any] = [prior.to(self.device) for prior in train_prior(config, store, **start)]
        return store, priors

    def encode(self, run: TrainedRun, data: ImageData | None = None, **settings: Any) -> CodeStore:
        """The codes of ``run``; those of an earlier model or of other data are replaced.

        data: by default the study's. settings: of :func:`models.codes.encode.encode`.
        """
        from models.autoencoders.discrete import require_codes
        from models.codes.encode import OtherCodesError, encode

        layout = run.config.layout
        images = self.data if data is None else data
        arguments: Any = (require_codes(run.model), images, layout.codes)
        options: dict[str, Any] = settings | {"source": str(layout.model), "device": self.device}
        options["progress"] = self.options.progress
        try:
            return encode(*arguments, **options)
        except OtherCodesError:
            return encode(*arguments, **options, overwrite=True)

    def steps(self, run: TrainedRun) -> int:
        """Optimizer steps that the run did: as many as it was to do, or fewer if its epochs had fewer."""
        from models.training.modules import total_steps

        return total_steps(run.config, len(self.data.train) // run.config.batch_size)

    def evaluate(self, run: TrainedRun, **options: Any) -> dict[str, float | str]:
        """:func:`models.evaluation.evaluate.evaluate` of the run on the study's data and device."""
        from models.evaluation.evaluate import evaluate

        return evaluate(run.model, self.data, device=self.device, progress=self.options.progress, **options)

    def sample(
        self,
        run: TrainedRun,
        priors: Sequence[AutoregressivePrior],
        store: CodeStore,
        per_class: int,
        **filters: Any,
    ) -> tuple[Tensor, Tensor]:
        """Images ``[classes * per_class, C, H, W]``, one class after the other, and their labels."""
        import torch

        from models.autoencoders.discrete import require_codes
        from models.codes.sample import decode, sample_codes

        labels = torch.arange(max(1, len(self.data.class_names))).repeat_interleave(per_class)
        generator = torch.Generator(self.device).manual_seed(self.options.seed)
        shapes = store.description.shapes
        total = len(labels) * sum(math.prod(shape) for shape in shapes)
        with progress_bar(total, "sample", "code", enabled=self.options.progress) as bar:
            filters |= {"generator": generator, "on_drawn": bar.update}
            codes = sample_codes(priors, shapes, labels.to(self.device), **filters)
        return decode(require_codes(run.model), codes).cpu(), labels

    @property
    def data_name(self) -> str:
        """As tables and figures name the data: a folder without the path to it."""
        path = Path(self.data.name)
        return path.resolve().name if path.is_dir() else self.data.name

    def caption(self, split: str, *varied: str) -> str:
        """What a figure of the study was made of: data, split, and the settings that all its runs share.

        varied: the settings in which the runs of the figure differ.
        """
        shared = {name: getattr(self.config, name) for name in _CAPTION if name not in varied}
        settings = ", ".join(f"{label} {shared[name]}" for name, label in _CAPTION.items() if name in shared)
        return f"{self.data_name}, {split} split; {settings}"

    def write_table(self, name: str, rows: Sequence[Row], caption: str = "") -> None:
        """``NAME.md`` and ``NAME.csv`` in the study's folder; also printed."""
        print(f"\n{name}\n{write_table(self.folder, name, rows, caption)}", flush=True)

    def say(self, text: str) -> None:
        """Print what is being done, unless progress is off."""
        if self.options.progress:
            print(text, flush=True)


def _check_options(study: str, options: StudyOptions, extra: Sequence[str]) -> None:
    """ValueError for an option that is not of this study."""
    if options.seeds is not None and "seeds" not in extra:
        raise ValueError(f"seeds is {options.seeds}; accepted: none, as {study} trains one run a setting")
    if options.seeds is not None:
        check_integer(1, seeds=options.seeds)
    if options.batch_size is not None and "batch_size" not in extra:
        raise ValueError(f"batch_size is {options.batch_size}; accepted: none, as {study} varies it")


def check_real_data(options: StudyOptions, folder: str) -> None:
    """ValueError where the study's own ``folder`` of real data is not here and no other one is given."""
    if options.scale == "real" and options.data is None and not Path(folder).exists():
        raise ValueError(
            f"data is {folder!r}, the study's own at real scale, and there is no such folder here; accepted: "
            f"the folder of these data or of others of their form (--data path/to/{folder}), see docs/runs.md"
        )


def mean_std(values: Sequence[float]) -> str:
    """``0.0793 (0.0027)``: mean and sample standard deviation; one value has none."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ({statistics.stdev(values):.4f})" if len(values) > 1 else mean
