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
from models.evaluation.pictures import save_image, side_by_side
from models.runs.layout import RunLayout
from models.training.modules import AutoencoderModule


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
                "loss": f"{getattr(pl_module, 'train_loss', float('nan')):.4g}",
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
