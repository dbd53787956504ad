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
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
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


class RunBar(ProgressBar):
    """One progress bar for the whole run, in optimizer steps, with epoch, training and validation loss."""

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        off = not trainer.is_global_zero
        self.bar = tqdm(
            total=self.total_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True, disable=off
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            values = {
                "epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
                "loss": f"{float(trainer.callback_metrics.get('train/loss', float('nan'))):.4g}",
                "validation": f"{float(trainer.callback_metrics['validation/loss']):.4g}",
            }
            self.bar.set_postfix(values, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()


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
