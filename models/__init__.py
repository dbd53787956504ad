"""VAE, VQ-VAE, VQ-VAE-2, their priors, and everything from data to samples.

``import models`` loads nothing heavy: each name below is imported when it is first used. The command
line is ``python -m models --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.autoencoders.likelihoods import make_likelihood
    from models.autoencoders.vae import VAE
    from models.autoencoders.vqvae import VQVAE
    from models.autoencoders.vqvae2 import VQVAE2
    from models.codes.encode import encode
    from models.codes.sample import decode, sample_codes
    from models.data import DataConfig, ImageData, ImageSplit, load_data
    from models.evaluation.evaluate import evaluate
    from models.priors import PixelCNN, PixelSNAIL, TransformerPrior
    from models.runs.open import load_pretrained
    from models.training.autoencoder import train
    from models.training.prior import train_prior

# The module that each public name comes from.
_HOME = {
    "VAE": "models.autoencoders.vae",
    "VQVAE": "models.autoencoders.vqvae",
    "VQVAE2": "models.autoencoders.vqvae2",
    "PixelCNN": "models.priors",
    "PixelSNAIL": "models.priors",
    "TransformerPrior": "models.priors",
    "load_pretrained": "models.runs.open",
    "make_likelihood": "models.autoencoders.likelihoods",
    "DataConfig": "models.data",
    "ImageData": "models.data",
    "ImageSplit": "models.data",
    "load_data": "models.data",
    "train": "models.training.autoencoder",
    "train_prior": "models.training.prior",
    "encode": "models.codes.encode",
    "evaluate": "models.evaluation.evaluate",
    "sample_codes": "models.codes.sample",
    "decode": "models.codes.sample",
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
    "encode",
    "evaluate",
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
