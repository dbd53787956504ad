"""Small training runs for the tests of models/training and of what they leave."""

from __future__ import annotations

from pathlib import Path

from models.runs.config import TrainConfig

Settings = dict[str, object]
SMALL: Settings = {
    "hidden": 8,
    "residual_hidden": 4,
    "embedding_dim": 4,
    "codebook_size": 16,
    "downscale": 2,
    "channels_vae": (4, 4, 4, 4),
    "latent_dim": 3,
    "kmeans_init": True,
    "dead_code_threshold": 1.0,
    "batch_size": 64,
    "lr": 1e-3,
    "limit": 256,
    "epochs": 2,
    "log_every": 1,
    "checkpoint_every": 3,
    "pictures_every": 0,
    "progress": False,
    "accelerator": "cpu",
}


def settings(folder: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**{"runs": str(folder), **SMALL, **changes})


def histories(*folders: Path) -> list[dict[str, object]]:
    from models.runs.history import read_history

    return [read_history(folder) for folder in folders]


def train(config: TrainConfig, data, **options: bool):
    from models.training.autoencoder import train

    return train(config, data, **options)
