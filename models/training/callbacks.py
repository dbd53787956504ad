"""Pictures during training, and checkpoints that a kill cannot leave half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from models.data import to_float
from models.pictures import save_image, side_by_side
from models.training.modules import AutoencoderModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that the file under its name is always complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        unfinished = f"{path}.unfinished"
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        os.replace(unfinished, path)


class ReconstructionPictures(pl.Callback):
    """Originals beside reconstructions after every few epochs, as PNG and in TensorBoard."""

    def __init__(self, images: Tensor, folder: Path, every: int) -> None:
        self.images, self.folder, self.every = images, folder, every

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or (trainer.current_epoch + 1) % self.every:
            return
        if not isinstance(module, AutoencoderModule):
            raise TypeError(f"pictures need an AutoencoderModule, got {type(module).__name__}")
        x = to_float(self.images.to(module.device))
        with torch.no_grad():
            picture = side_by_side(x, module.model(x).reconstruction)
        save_image(picture, self.folder / f"epoch_{trainer.current_epoch + 1:04d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("reconstructions", picture, trainer.global_step)
