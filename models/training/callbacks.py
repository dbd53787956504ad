"""Progress, pictures during training, and checkpoints that a kill cannot leave half written."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from tqdm import tqdm

from models.data import to_float
from models.evaluation.pictures import save_image, side_by_side
from models.runs.layout import RunLayout
from models.training.modules import AutoencoderModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that the file under its name is always complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        unfinished = f"{path}.unfinished"
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        os.replace(unfinished, path)


@contextmanager
def interrupt_handler_kept() -> Iterator[None]:
    """Afterwards Ctrl-C does what it did before, though Lightning ignores it from the first one on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


class LastCheckpoint(Checkpoint):
    """Saves after every few steps, after the last one, and after the step in which Ctrl-C was pressed.

    All between two steps of an epoch, from where Lightning goes on exactly. The second Ctrl-C stops at
    once; so does the first one with several processes, which may notice it at different steps.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.steps = 0
        self.interrupted, self.stopping = False, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = trainer.global_step
        alone = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.steps:
            return  # gradients are being accumulated, and no checkpoint holds those
        self.steps = trainer.global_step
        if self.interrupted or self.steps % self.every == 0 or self.steps == trainer.max_steps:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.stopping = self.interrupted

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if self.stopping:  # not sooner, for Lightning writes a step's row of the logs after the hooks
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nsaving after this step; Ctrl-C again stops at once", file=sys.stderr)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also knows the best score of a run whose folder has moved."""

    @property
    def state_key(self) -> str:
        """That of ModelCheckpoint, under which checkpoints have its state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            moved = folder / Path(path).name
            return str(moved) if path and moved.is_file() else path

        if state_dict["best_model_path"] and (folder / Path(state_dict["best_model_path"]).name).is_file():
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_k_models": {here(path): score for path, score in state_dict["best_k_models"].items()},
                **{
                    name: here(state_dict[name])
                    for name in ("best_model_path", "kth_best_model_path", "last_model_path")
                },
            }
        super().load_state_dict(state_dict)


class RunBar(ProgressBar):
    """One progress bar for the whole run, in optimizer steps, with epoch, training and validation loss.

    The training loss is that of the first step, and then of every step whose row is logged. After the last
    step a line says what was reached.
    """

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.bar: tqdm[Any] | None = None
        self.values: dict[str, str] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        off = not trainer.is_global_zero
        self.bar = tqdm(
            total=self.total_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True, disable=off
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *arguments: Any
    ) -> None:
        if self.bar is None:
            return
        is_logged = trainer.global_step % getattr(pl_module, "log_every", 1) == 0
        if is_logged or "loss" not in self.values:  # reading a loss waits for the device
            self._show(trainer, loss=float(outputs["loss"]))
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None and "validation/loss" in trainer.callback_metrics:
            self._show(trainer, validation=float(trainer.callback_metrics["validation/loss"]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def _show(self, trainer: pl.Trainer, **losses: float) -> None:
        self.values["epoch"] = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.values |= {name: f"{value:.4g}" for name, value in losses.items()}
        if self.bar is not None:
            self.bar.set_postfix(self.values, refresh=False)


class ReconstructionPictures(pl.Callback):
    """Originals beside reconstructions after every few epochs, as PNG and in TensorBoard."""

    def __init__(self, images: Tensor, layout: RunLayout, every: int) -> None:
        self.images, self.layout, self.every = images, layout, every

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or (trainer.current_epoch + 1) % self.every:
            return
        if not isinstance(module, AutoencoderModule):
            raise TypeError(f"module is a {type(module).__name__}; accepted: an AutoencoderModule")
        x = to_float(self.images.to(module.device))
        with torch.no_grad():
            picture = side_by_side(x, module.model(x).reconstruction)
        save_image(picture, self.layout.epoch_picture(trainer.current_epoch + 1))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("reconstructions", picture, trainer.global_step)
