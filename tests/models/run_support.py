"""Untrained runs in the form that the commands leave them, for the tests of models/cli."""

from __future__ import annotations

from pathlib import Path

import torch

from models import VQVAE, VQVAE2, TransformerPrior, load_data
from models.codes.encode import encode
from models.runs.config import TrainConfig

TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 16}


def tiny_hierarchy() -> VQVAE2:
    """Two levels, top 2 x 2 and bottom 4 x 4 for digits, of random weights."""
    torch.manual_seed(0)
    return VQVAE2(1, downscales=(2, 2), likelihood="logistic", **TINY).eval()


def write_run(folder: Path, seed: int = 0, likelihood: str = "logistic", **settings: object) -> Path:
    """A run of a VQ-VAE of downscale 2 on the data of ``settings``."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    config = TrainConfig(name=folder.name, runs=str(folder.parent), downscale=2, **settings)
    config.save(folder / "config.yaml")
    channels = load_data(config, stream=True).channels
    VQVAE(channels, downscale=2, likelihood=likelihood, **TINY).save_pretrained(folder / "model")
    return folder


def write_prior(folder: Path, run: Path, conditional: bool = True) -> Path:
    """The codes of ``run`` in ``run/codes`` and a prior over them."""
    model = VQVAE.from_pretrained(run / "model")
    data = load_data(TrainConfig.load(run / "config.yaml"), stream=True)
    description = encode(model, data, run / "codes", source=str(run / "model")).description
    classes = len(description.class_names) if conditional else None
    prior = TransformerPrior(16, 8, shape=description.shapes[0], layers=1, heads=2, num_classes=classes)
    prior.save_pretrained(folder / "level0")
    description.save(folder)
    return folder
