"""Checkpoints that a kill cannot leave half written, at moments from which a run goes on exactly.

Lightning resumes exactly from between two steps of an epoch and from between two epochs, after validation;
from the moments around an epoch's end it does not. Checkpoints of the last state are therefore written at
those two moments alone. A run that is killed elsewhere repeats the steps, and the validation, since the last
one: as a step depends on (seed, number) alone, it ends where an undisturbed run ends.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from models.training.signals import StopSignals


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that the file under its name is always complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``path``; OSError naming it where it cannot be written, for example on a full disk."""
        unfinished = Path(f"{path}.unfinished")
        try:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, unfinished)
            os.replace(unfinished, path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            unfinished.unlink(missing_ok=True)
            raise OSError(f"{path} cannot be written ({error})") from error


class StopTraining(Exception):
    """Raised between two steps after a signal: the run is saved."""


class LastCheckpoint(Checkpoint):
    """Saves after every few steps, after the last one, and after the step in which a signal came.

    What is due after the last step of an epoch is saved when its validation is over.

    total_steps: where training ends, whatever the epoch. Lightning is told so only here: a Trainer that knows
    it from the beginning resumes from between two epochs as if it were in the middle of one.
    """

    def __init__(self, path: Path, every: int, total_steps: int | None, signals: StopSignals) -> None:
        self.path, self.every, self.signals = path, every, signals
        self.total_steps = -1 if total_steps is None else total_steps
        self.steps = 0
        self.is_due, self.is_stopping = False, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = trainer.global_step
        trainer.fit_loop.epoch_loop.max_steps = self.total_steps
        self.signals.install()

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.steps:
            return  # gradients are being accumulated, and no checkpoint holds those
        self.steps = trainer.global_step
        stop = self._a_signal_came(trainer)
        if not (stop or self.steps % self.every == 0 or self.steps == self.total_steps):
            return
        if trainer.is_last_batch:
            self.is_due = True
        else:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.is_stopping = stop

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if self.is_stopping:  # not sooner, for Lightning writes a step's row of the logs after the hooks
            raise StopTraining

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop = self._a_signal_came(trainer)
        if not (self.is_due or stop):
            return
        self.is_due = False
        # This epoch is counted already as one that is ready; in the checkpoint it is not.
        progress = trainer.fit_loop.epoch_progress
        for tracker in (progress.total, progress.current):
            tracker.ready -= 1
        trainer.save_checkpoint(self.path, weights_only=False)
        for tracker in (progress.total, progress.current):
            tracker.ready += 1
        if stop:
            raise StopTraining

    def _a_signal_came(self, trainer: pl.Trainer) -> bool:
        """Whether a signal came to any process; asked at the same steps by all of them."""
        received = self.signals.received or 0
        if trainer.world_size > 1:
            number = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(number, reduce_op="max"))
            self.signals.received = received or None
        return received > 0


class TimeLimit(pl.Callback):
    """Ends a run after the step in which its training has taken ``minutes``, over all its starts.

    last: which is told that this step is the last one, and saves it.
    """

    def __init__(self, minutes: float, last: LastCheckpoint) -> None:
        self.limit, self.last = 60 * minutes, last
        self.seconds = 0.0  # of training, up to the last step
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The time that the run has taken."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._since = time.monotonic()
        self._share(pl_module)
        if self.seconds >= self.limit:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *arguments: Any) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        if trainer.world_size > 1:
            self.seconds = trainer.strategy.broadcast(self.seconds)
        self._share(pl_module)
        if self.seconds >= self.limit and trainer.global_step > self.last.steps:
            self.last.total_steps = trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def _share(self, pl_module: Any) -> None:
        """Tell the module, whose schedule ends with the time, how much of it has passed."""
        pl_module.time_share = min(1.0, self.seconds / self.limit)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of lowest validation loss at ``path``, wherever the run's folder has moved to."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path.parent, filename=path.stem, monitor="validation/loss", enable_version_counter=False
        )
        self.path = path

    @property
    def state_key(self) -> str:
        """That of the base class, under which earlier checkpoints have the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score so far; the paths beside it say where the folder was then."""
        state = state_dict | {"dirpath": self.dirpath}
        if state["best_k_models"]:
            path = str(Path(str(self.dirpath)) / self.path.name)
            (score,) = state["best_k_models"].values()
            state |= {"best_model_path": path, "kth_best_model_path": path, "best_k_models": {path: score}}
        super().load_state_dict(state)


class PatientStopping(EarlyStopping):
    """Early stopping whose patience is that of the settings, and a stop that a resumed run remembers."""

    def __init__(self, patience: int) -> None:
        # A run that was killed between two validations has no such value yet when it goes on.
        super().__init__("validation/loss", patience=patience, strict=False)

    @property
    def state_key(self) -> str:
        """That of the base class, under which earlier checkpoints have the state."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take all but the patience, which a resumed run may change."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
