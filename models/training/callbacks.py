"""Progress, and pictures during training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from tqdm import tqdm

from models.data import to_float
from models.data.kinds import Kind
from models.evaluation.pictures import save_image, side_by_side
from models.runs.layout import RunLayout
from models.training.modules import AutoencoderModule


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
        is_first = not self.values  # shown at once, however short the epoch
        self.values["epoch"] = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.values |= {name: f"{value:.4g}" for name, value in losses.items()}
        if self.bar is not None:
            self.bar.set_postfix(self.values, refresh=is_first)


class ReconstructionPictures(pl.Callback):
    """Originals beside reconstructions after every few epochs, as PNG and in TensorBoard."""

    def __init__(self, images: Tensor, kind: Kind, layout: RunLayout, every: int) -> None:
        self.images, self.kind, self.layout, self.every = images, kind, layout, every

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or (trainer.current_epoch + 1) % self.every:
            return
        if not isinstance(module, AutoencoderModule):
            raise TypeError(f"module is a {type(module).__name__}; accepted: an AutoencoderModule")
        x = to_float(self.images.to(module.device))
        with torch.no_grad():
            reconstruction = module.model(x).reconstruction
        picture = side_by_side(self.kind.pictures(x), self.kind.pictures(reconstruction), self.kind.columns)
        save_image(picture, self.layout.epoch_picture(trainer.current_epoch + 1))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("reconstructions", picture, trainer.global_step)
