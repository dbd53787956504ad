"""What the studies share: options, trained runs that are kept, tables."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.runs.config import PriorConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from models.autoencoders.base import Autoencoder, CodeModel
    from models.codes.store import CodeStore
    from models.data import ImageData
    from models.priors.base import AutoregressivePrior
    from models.runs.history import Series

SCALES = ("small", "paper")
# Options that only some studies take: who averages over seeds, and who varies the batch size itself.
SEEDED = ("kaokore-vqvae2",)
VARY_BATCH_SIZE = ("cifar-vae-vqvae",)
_OWN = ("data", "limit", "size", "label_column", "epochs", "batch_size")
Row = Mapping[str, str | float | int]


@dataclass(frozen=True)
class StudyOptions:
    """What `reproduce` takes; ``None`` means: as the scale has it.

    seeds: runs to average over, at least 1; of the studies in ``SEEDED`` only. batch_size: of every model
    and prior; not of those in ``VARY_BATCH_SIZE``. Raises ValueError for others.
    """

    data: str | None = None
    scale: str = "small"
    runs: str = "runs"
    seeds: int | None = None
    limit: int | None = None
    size: str | None = None
    label_column: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accelerator: str = "auto"
    precision: str = "32-true"
    progress: bool = True


@dataclass(frozen=True)
class TrainedRun:
    """A trained autoencoder with its settings and logged values."""

    config: TrainConfig
    model: Autoencoder
    history: dict[str, Series]


class Runner:
    """Trains what a study asks for under ``RUNS/reproduce-STUDY-SCALE`` and writes its tables there.

    A run that is already there with the same settings is loaded, and one that was interrupted goes on from
    its last checkpoint, so that a study goes on where it stopped.
    """

    def __init__(self, study: str, options: StudyOptions, settings: Mapping[str, Mapping[str, Any]]) -> None:
        from models.data import load_data
        from models.runs.device import find_device

        _check_options(study, options)
        if options.scale not in settings:
            raise ValueError(f"scale must be one of {', '.join(settings)}, got {options.scale!r}")
        self.options = options
        self.folder = Path(options.runs) / f"reproduce-{study}-{options.scale}"
        given = {name: getattr(options, name) for name in _OWN}
        own = {name: value for name, value in given.items() if value is not None}
        loop = {name: getattr(options, name) for name in ("accelerator", "precision", "progress")}
        self.shared: dict[str, Any] = {"runs": str(self.folder)} | loop
        self.settings = {**settings[options.scale], **self.shared, **own}
        self.config = TrainConfig(**self.settings)
        self.data: ImageData = load_data(self.config)
        self.device = find_device({"gpu": "cuda"}.get(options.accelerator, options.accelerator))

    def train(self, name: str, **changes: Any) -> TrainedRun:
        """The run ``name`` with ``changes`` to the study's settings."""
        from models.pretrained import load_pretrained
        from models.runs.history import read_history
        from models.training.autoencoder import train

        config = TrainConfig(**self.settings | {"name": name} | changes)
        if self._is_done(config, "model"):
            loaded: Any = load_pretrained(config.folder / "model", self.device)
        else:
            self._say(f"training {name}")
            loaded = train(config, self.data, **self._start(config)).to(self.device)
        return TrainedRun(config, loaded, read_history(config.folder))

    def train_priors(
        self, run: TrainedRun, name: str, **settings: Any
    ) -> tuple[CodeStore, list[AutoregressivePrior]]:
        """Priors over the codes of ``run``, top level first, and the store of codes."""
        from models.cli.flags import open_priors
        from models.codes.encode import encode
        from models.codes.store import DESCRIPTION_FILE, CodeDescription
        from models.training.prior import train_prior

        given = {name: getattr(self.options, name) for name in ("epochs", "batch_size")}
        settings |= {name: value for name, value in given.items() if value is not None}
        model: CodeModel = as_vq(run.model)
        codes = run.config.folder / "codes"
        config = PriorConfig(name=name, codes=str(codes), **self.shared, **settings)
        source = str(run.config.folder / "model")
        try:
            store = encode(model, self.data, codes, source=source, device=self.device)
        except ValueError:  # of an earlier model or other data
            store = encode(model, self.data, codes, source=source, device=self.device, overwrite=True)
        # A prior keeps the description of its codes: another run of the model makes it out of date.
        seen = config.folder / DESCRIPTION_FILE
        known = seen.is_file() and CodeDescription.load(config.folder).difference(store.description) is None
        if known and self._is_done(config, f"level{len(store.description.shapes) - 1}"):  # written last
            return store, open_priors(config.folder, self.device)
        self._say(f"training {name}")
        start = self._start(config) if known else {"overwrite": True}
        trained: list[Any] = [prior.to(self.device) for prior in train_prior(config, store, **start)]
        return store, trained

    def steps(self, run: TrainedRun) -> int:
        """Optimizer steps that the run did: as many as it was to do, or fewer if its epochs had fewer."""
        from models.training.modules import total_steps

        return total_steps(run.config, len(self.data.train) // run.config.batch_size)

    def evaluate(self, run: TrainedRun, **options: Any) -> dict[str, float | str]:
        """:func:`models.evaluation.evaluate.evaluate` of the run on the study's data and device."""
        from models.evaluation.evaluate import evaluate

        return evaluate(run.model, self.data, device=self.device, **options)

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

        from models.codes.sample import decode, sample_codes

        labels = torch.arange(max(1, len(self.data.class_names))).repeat_interleave(per_class)
        generator = torch.Generator(self.device).manual_seed(0)
        shapes = store.description.shapes
        codes = sample_codes(priors, shapes, labels.to(self.device), generator=generator, **filters)
        return decode(as_vq(run.model), codes).cpu(), labels

    def write_table(self, name: str, rows: Sequence[Row], note: str = "") -> None:
        """``NAME.md`` and ``NAME.csv`` in the study's folder; also printed."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
        text = "\n".join(lines)
        (self.folder / f"{name}.md").write_text(f"{text}\n" + (f"\n{note}\n" if note else ""))
        print(f"\n{name}\n{text}\n{note}", flush=True)

    def _is_done(self, config: TrainConfig | PriorConfig, part: str) -> bool:
        return self._is_same(config) and (config.folder / part / "model.safetensors").is_file()

    def _is_same(self, config: TrainConfig | PriorConfig) -> bool:
        """Whether the run in the folder has these settings, progress bars aside."""
        from models.runs.start import CONFIG

        file = config.folder / CONFIG
        return file.is_file() and type(config).load(file).replace(progress=config.progress) == config

    def _start(self, config: TrainConfig | PriorConfig) -> dict[str, bool]:
        """How to train: an interrupted run with the same settings goes on, any other one is replaced."""
        from models.runs.start import LAST

        interrupted = self._is_same(config) and (config.folder / "checkpoints" / LAST).is_file()
        return {"resume": True} if interrupted else {"overwrite": True}

    def _say(self, text: str) -> None:
        if self.options.progress:
            print(text, flush=True)


def _check_options(study: str, options: StudyOptions) -> None:
    if options.seeds is not None and study not in SEEDED:
        raise ValueError(f"seeds is {options.seeds}, but {study} trains one run a setting; leave it out")
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {options.seeds}")
    if options.batch_size is not None and study in VARY_BATCH_SIZE:
        raise ValueError(f"batch_size is {options.batch_size}, but {study} varies it; leave it out")


def as_vq(model: Autoencoder) -> CodeModel:
    """TypeError for a VAE, which has no codes."""
    from models.autoencoders.vae import VAE

    if isinstance(model, VAE):
        raise TypeError("a VAE has no codes")
    return model


def mean_std(values: Sequence[float]) -> str:
    """``0.0793 (0.0027)``: mean and sample standard deviation; one value has none."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ({statistics.stdev(values):.4f})" if len(values) > 1 else mean


def _cell(value: str | float | int) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
