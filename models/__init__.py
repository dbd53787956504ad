"""VAE, VQ-VAE, VQ-VAE-2, their priors, and everything from data to samples.

``import models`` loads nothing heavy: each name below is imported when it is first used. The command
line is ``python -m models --help``. :func:`models.encode.encode` and :func:`models.evaluate.evaluate` are
not among them, as a name of this package cannot be a function and a module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.data import DataConfig, ImageData, ImageSplit, load_data
    from models.likelihoods import make_likelihood
    from models.pretrained import load_pretrained
    from models.priors import PixelCNN, PixelSNAIL, TransformerPrior
    from models.sample import decode, sample_codes
    from models.training.autoencoder import train
    from models.training.prior import train_prior
    from models.vae import VAE
    from models.vqvae import VQVAE
    from models.vqvae2 import VQVAE2

_HOME = {
    "VAE": "models.vae",
    "VQVAE": "models.vqvae",
    "VQVAE2": "models.vqvae2",
    "PixelCNN": "models.priors",
    "PixelSNAIL": "models.priors",
    "TransformerPrior": "models.priors",
    "load_pretrained": "models.pretrained",
    "make_likelihood": "models.likelihoods",
    "DataConfig": "models.data",
    "ImageData": "models.data",
    "ImageSplit": "models.data",
    "load_data": "models.data",
    "train": "models.training.autoencoder",
    "train_prior": "models.training.prior",
    "sample_codes": "models.sample",
    "decode": "models.sample",
}

__all__ = [
    "VAE",
    "VQVAE",
    "VQVAE2",
    "DataConfig",
    "ImageData",
    "ImageSplit",
    "PixelCNN",
    "PixelSNAIL",
    "TransformerPrior",
    "decode",
    "load_data",
    "load_pretrained",
    "make_likelihood",
    "sample_codes",
    "train",
    "train_prior",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
