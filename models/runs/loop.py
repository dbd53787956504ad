"""Settings of every training loop, and how settings of a run are read, compared and written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from models.runs.layout import RunLayout
from models.runs.rules import BEFORE, PLACE_SETTINGS, RESUMABLE_SETTINGS, SELDOM_SET, check_name
from models.settings import (
    closest,
    convert_value,
    format_value,
    read_yaml,
    setting,
    setting_types,
    write_yaml,
)
from vq_kernels.checks import check_choice, check_integer, check_number

LOGGERS = ("csv", "tensorboard", "wandb")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training loop needs; the results go to the folder ``RUNS/NAME``."""

    command: ClassVar[str] = ""  # that trains with these settings
    settings_title: ClassVar[str] = "run and training"

    name: str = setting("run", "name of the run; results go to RUNS/NAME")
    runs: str = setting("runs", "folder of all runs")
    epochs: int = setting(20, "passes over the training split")
    steps: int | None = setting(None, "stop after this many optimizer steps, whatever the epoch")
    minutes: float | None = setting(None, "stop after so many minutes of training; the schedule ends there")
    batch_size: int = setting(64, "images in a batch, on each process")
    lr: float = setting(3e-4, "learning rate of Adam")
    weight_decay: float = setting(0.0, "of matrices and convolutions at each step, as AdamW has it")
    schedule: str = setting("constant", "learning rate: constant, or cosine (down to zero at the end)")
    warmup: int = setting(0, "steps over which the learning rate rises from zero")
    clip: float | None = setting(None, "clip the norm of the gradient to this")
    accumulate: int = setting(1, "batches whose gradients are averaged into one step")
    precision: str = setting("32-true", "32-true, bf16-mixed or 16-mixed")
    compile: bool = setting(False, "compile the model with torch.compile, which takes minutes at the start")
    devices: int | None = setting(None, "devices on each machine; by default as torchrun says, else 1")
    accelerator: str = setting("auto", "auto, cpu or gpu")
    deterministic: bool = setting(True, "on a GPU: equal seeds give equal runs, at some speed")
    patience: int | None = setting(None, "stop after this many epochs without a better validation loss")
    seed: int = setting(0, "of weights, order of images and noise; equal seeds give equal runs")
    log_every: int = setting(10, "steps between two rows of the logs")
    checkpoint_every: int = setting(200, "steps between two saves of the last checkpoint")
    progress: bool = setting(True, "show progress bars")
    logger: tuple[str, ...] = setting(
        ("csv", "tensorboard"), "csv, and tensorboard, wandb (offline, if installed) or both"
    )
    requeue: bool = setting(False, "when a signal stops a SLURM job, put it back into the queue")

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; accepted: a finite number")
        self._check_integers(1, "epochs", "steps", "batch_size", "accumulate", "devices", "patience")
        self._check_integers(1, "log_every", "checkpoint_every")
        self._check_integers(0, "warmup", "seed")
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; accepted: an integer below 2**32")
        for logger in self.logger:
            check_choice(LOGGERS, logger=logger)
        if "csv" not in self.logger:
            logger = format_value(self.logger)
            raise ValueError(f"logger is {logger}; accepted: csv, from which figures are drawn, and others")
        check_choice(("constant", "cosine"), schedule=self.schedule)
        check_choice(PRECISIONS, precision=self.precision)
        check_choice(("auto", "cpu", "gpu"), accelerator=self.accelerator)
        if not 0 < self.lr <= 1e30:  # weights are float32
            raise ValueError(f"lr is {self.lr}; accepted: a number above 0, up to 1e30")
        check_number(weight_decay=self.weight_decay)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; accepted: a number above 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; accepted: a number above 0")

    def _check_integers(self, lowest: int, *names: str) -> None:
        """ValueError or TypeError unless the settings, and the entries of tuples, are at least ``lowest``.

        A setting that is None is not checked: it stands for another default.
        """
        for name in names:
            value = getattr(self, name)
            if value == ():
                raise ValueError(
                    f"{name} is empty; accepted: integers of at least {lowest}, with commas between"
                )
            for entry in value if isinstance(value, tuple) else (value,):
                if entry is not None:
                    check_integer(lowest, **{name: entry})

    @property
    def layout(self) -> RunLayout:
        """The names in the run's folder."""
        return RunLayout(self.folder)

    @property
    def folder(self) -> Path:
        """``RUNS/NAME``, the run's folder."""
        return Path(self.runs) / self.name

    def replace(self, **changes: Any) -> Self:
        """These settings with ``changes``, whose values have the settings' own types."""
        return dataclasses.replace(self, **changes)

    def with_values(self, values: Mapping[str, Any], source: str) -> Self:
        """These settings with ``values`` as YAML or flags give them. Raises as :meth:`from_mapping` does."""
        return self.replace(**self._converted(values, source))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> Self:
        """Settings from names and values as YAML or flags give them; the others take their defaults.

        Raises ValueError naming ``source``, the setting, and the nearest name or what is accepted.
        """
        return cls(**cls._converted(values, source))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Settings from a YAML file, or by name from ``models/configs``."""
        return cls.from_mapping(read_yaml(path), str(path))

    @classmethod
    def of_run(cls, path: str | Path) -> Self:
        """Settings from the ``config.yaml`` of a run, which an earlier version may have written."""
        return cls.from_mapping(cls.completed(read_yaml(path)), str(path))

    @classmethod
    def is_of_run(cls, values: Mapping[str, Any]) -> bool:
        """Whether ``values`` list all that there is to set, as the ``config.yaml`` of a run does."""
        return set(SELDOM_SET) <= set(values)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings in the ``config.yaml`` of a run with what earlier versions did without saying so."""
        types = setting_types(cls)
        return {name: value for name, value in BEFORE.items() if name in types} | dict(values)

    @classmethod
    def _converted(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        types = setting_types(cls)
        for name in values:
            if name not in types:
                for other in LoopConfig.__subclasses__():
                    if name in setting_types(other):
                        raise ValueError(
                            f"{source} is of a {other.command} run, not of a {cls.command} run: it sets "
                            f"{name}; accepted: folder, --name or --config of a {cls.command} run"
                        )
                raise ValueError(f"{source}: unknown setting {name!r}; {closest(str(name), types)}")
        return {name: convert_value(value, types[name], name, source) for name, value in values.items()}

    def difference(self, earlier: Self) -> tuple[str, Any, Any] | None:
        """The first setting that makes another run than ``earlier``, its value there and here, or None."""
        for name, before in vars(earlier).items():
            value = getattr(self, name)
            if name not in PLACE_SETTINGS and not (name == "codes" or value == before):
                return name, before, value
        return None

    def check_resumes(self, earlier: Self) -> None:
        """ValueError unless a run with the settings ``earlier`` can go on with these."""
        for name, before in vars(earlier).items():
            value = getattr(self, name)
            if name not in RESUMABLE_SETTINGS and value != before:
                raise ValueError(
                    f"{name} is {format_value(value)}, but the run in {self.folder} has "
                    f"{format_value(before)}, which --resume keeps; leave {name} out, or choose another name "
                    f"(--name) or --overwrite"
                )

    def save(self, path: Path) -> None:
        """Write all settings as YAML."""
        write_yaml(path, self)
