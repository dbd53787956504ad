"""What a run will take, from its first steps: time, memory and disk, measured on one that is thrown away."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

from models.runs.loop import LoopConfig
from models.training.modules import SeededModule, total_steps

Config = TypeVar("Config", bound=LoopConfig)
_FEW = 12  # optimizer steps that are timed at first, of which the first third is not counted
_LONG_ENOUGH = 1.5  # seconds of timed steps; what is shorter is timed over more steps
_MOST = 400  # steps that are timed
_VALIDATION_BATCHES = 8


@dataclass(frozen=True)
class Plan:
    """What a run consists of and is expected to need.

    seconds: from reading the data to the last file, without early stopping. memory: the peak of this process
    in bytes, of a GPU what torch has allocated there. disk: bytes of the run's folder at the end.
    """

    steps: int
    validations: int
    parameters: int
    memory: int
    disk: int
    seconds: float

    def describe(self) -> str:
        """One quantity a line, in words."""
        minutes = f" ({self.seconds / 60:.1f} minutes)" if self.seconds >= 120 else ""
        return "\n".join(
            (
                f"steps       {self.steps}, {self.validations} validations",
                f"parameters  {self.parameters:,}",
                f"memory      {self.memory / 2**20:,.0f} MiB at most",
                f"disk        {self.disk / 2**20:,.1f} MiB",
                f"time        {self.seconds:.0f} s{minutes}",
            )
        )


class StepTimer(pl.Callback):
    """Times steps, validations and a checkpoint of a run.

    Attributes:
        steps: seconds of each optimizer step but those with a validation before them.
        validation: mean seconds of the batches of each validation.
        after_validation: seconds of what follows each validation, a picture for example.
        checkpoint: seconds that one takes to be written, and its size in bytes.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validation: list[float] = []
        self.after_validation: list[float] = []
        self.checkpoint = (0.0, 0)
        self.parameters = 0
        self._last: float | None = None
        self._began = 0.0
        self._step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.limit_val_batches = _VALIDATION_BATCHES
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters())

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        now = _now()
        if self._last is not None:
            self.steps.append(now - self._last)
        self._last = now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = _now()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = _now()
        self.validation.append((now - self._began) / max(1, int(sum(trainer.num_val_batches))))
        self._began = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.after_validation.append(_now() - self._began)
        self._last = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        file = Path(trainer.default_root_dir) / "timed.ckpt"
        start = _now()
        trainer.save_checkpoint(file, weights_only=False)
        self.checkpoint = (_now() - start, file.stat().st_size)
        file.unlink()


def rehearse(
    config: Config,
    run: Callable[[Config, StepTimer], SeededModule],
    validation_batches: int,
    pictures_every: int,
    setup_seconds: float,
) -> Plan:
    """Time the first steps of the run that ``run`` trains with given settings, in a folder that is removed.

    run: trains with the settings, the timer first among the callbacks, with a picture after every epoch if
    there are any, and returns the module. validation_batches: of a whole validation. pictures_every: epochs
    between two pictures, 0 for none. setup_seconds: that reading the data took, which belongs to the run too.
    """
    count = _FEW
    while True:
        with tempfile.TemporaryDirectory() as folder:
            timer = StepTimer()
            few = config.replace(
                runs=folder, name="rehearsal", steps=count, patience=None, progress=False, requeue=False,
                checkpoint_every=2**31)  # fmt: skip
            start = _now()
            try:
                module = run(few, timer)
            except KeyboardInterrupt as interruption:  # of which nothing is left to go on with
                raise KeyboardInterrupt from interruption
            total = _now() - start
            disk = _sizes(few.folder)
        steps = total_steps(config, len(module.loader))
        most = min(steps, _MOST)
        counted = timer.steps[len(timer.steps) // 3 :]
        step = _mean(counted)
        if sum(counted) >= _LONG_ENOUGH or count >= most:
            break
        count = min(most, count + int(2 * _LONG_ENOUGH / max(step, 1e-4)))
    done = min(count, steps)
    validations = -(-steps // -(-len(module.loader) // config.accumulate))
    pictures = validations // pictures_every if pictures_every else 0
    batch, after = _mean(timer.validation), _mean(timer.after_validation)
    seconds_of_checkpoint, size_of_checkpoint = timer.checkpoint
    timed_batches = min(validation_batches, _VALIDATION_BATCHES) * len(timer.validation)
    # Each validation may find a better model, whose checkpoint is then written.
    repeated = done * step + timed_batches * batch + sum(timer.after_validation)
    once = max(0.0, total - repeated - seconds_of_checkpoint * (2 + len(timer.validation)))
    seconds = setup_seconds + once + steps * step + validations * validation_batches * batch
    seconds += (pictures if pictures_every else validations) * after
    seconds += (validations + steps // config.checkpoint_every + 1) * seconds_of_checkpoint
    size = disk["rest"] + 2 * size_of_checkpoint + disk["pictures"] * pictures
    size += int(disk["logs"] * max(1, steps // module.log_every) / max(1, done // module.log_every))
    return Plan(steps, validations, timer.parameters, _peak_memory(), size, seconds)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the logs, of one epoch's picture, and of all that does not grow, but for the checkpoints."""
    sizes = {"logs": 0, "pictures": 0, "rest": 0}
    for file in (path for path in folder.rglob("*") if path.is_file()):
        part = file.relative_to(folder).parts[0]
        if part == "reconstructions":
            sizes["pictures"] = file.stat().st_size
        elif part != "checkpoints":
            sizes["logs" if part in ("logs", "tensorboard") else "rest"] += file.stat().st_size
    return sizes


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
