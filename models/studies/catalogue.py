"""Study names, without importing what a study needs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

from models.studies.runner import StudyOptions

STUDIES = {
    "kaokore-vqvae2": "VQ-VAE against VQ-VAE-2: losses of three runs, reconstructions, t-SNE, samples",
    "cifar-vae-vqvae": "VAE against VQ-VAE over batch sizes: SSIM and loss",
    "celeba-sweep": "VQ-VAE over beta, learning rate and codebook size; the best setting trained longer",
    "mnist-transformer": "VQ-VAE with a Transformer prior over codebook sizes, dimensions and lengths",
    "likelihood": "bits per dimension of VAE and VQ-VAE under several likelihoods",
}


def load_study(name: str) -> Callable[[StudyOptions], Path]:
    """The function that runs the study ``name``."""
    module = import_module("models.studies." + name.replace("-", "_"))
    return cast(Callable[[StudyOptions], Path], module.run)
