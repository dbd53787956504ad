"""The variance of a Gaussian likelihood of fixed variance, found on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.autoencoders.likelihoods import Gaussian
from models.data import BatchLoader, ImageSplit, to_float

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder


def uncalibrated(model: Autoencoder) -> Gaussian | None:
    """The likelihood of ``model`` if its variance is fixed, but has not been fitted to anything yet."""
    likelihood = model.likelihood
    if isinstance(likelihood, Gaussian) and not likelihood.learnt and not bool(likelihood.calibrated):
        return likelihood
    return None


@torch.no_grad()
def squared_error(model: Autoencoder, split: ImageSplit, batch_size: int) -> Tensor:
    """Mean squared error of the reconstructions of ``split`` in each channel: float32 ``[C]``.

    They are those of latents drawn as the bound on -log p(x) draws them, always with the same noise.
    """
    device = next(model.parameters()).device
    total = torch.zeros(model.in_channels, dtype=torch.float64, device=device)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for images, _ in BatchLoader(split, batch_size):
            x = to_float(images.to(device))
            total += (model.likely_reconstruction(x) - x).double().square().transpose(0, 1).flatten(1).sum(1)
    return (total / (len(split) * math.prod(split.size))).float()


def calibrate(model: Autoencoder, split: ImageSplit, batch_size: int) -> None:
    """Fit a variance that needs it to the reconstructions of ``split``, on held-out data."""
    if (likelihood := uncalibrated(model)) is not None:
        likelihood.calibrate(squared_error(model, split, batch_size))


@contextmanager
def calibrated(model: Autoencoder, split: ImageSplit, batch_size: int) -> Iterator[None]:
    """Inside the block a variance that needs it is calibrated on ``split``; afterwards it is as before."""
    likelihood = uncalibrated(model)
    if likelihood is None:
        yield
        return
    before = likelihood.log_variance.clone()
    likelihood.calibrate(squared_error(model, split, batch_size))
    try:
        yield
    finally:
        likelihood.log_variance.copy_(before)
        likelihood.calibrated.fill_(0.0)
