"""From the settings of a run to its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.autoencoders.vae import VAE
from models.autoencoders.vqvae import VQVAE
from models.autoencoders.vqvae2 import VQVAE2
from models.data import ImageData
from models.runs.config import TrainConfig

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder


def build_model(config: TrainConfig, data: ImageData) -> Autoencoder:
    """The model that ``config`` names, for images of ``data``'s channels and size.

    The fixed variance of the ``mse`` likelihood is the variance of the data, so that its loss is the
    normalised squared error. Raises ValueError for an unknown model or a size that does not divide.
    """
    loss: dict[str, Any] = {
        "beta": config.beta,
        "likelihood": config.likelihood,
        "variance": data.variance,
    }
    if config.model == "vae":
        return VAE(
            data.channels, data.size, latent_dim=config.latent_dim, channels=config.channels_vae, **loss
        )
    shared: dict[str, Any] = loss | {
        "hidden": config.hidden,
        "residual_layers": config.residual_layers,
        "residual_hidden": config.residual_hidden,
        "embedding_dim": config.embedding_dim,
        "codebook_size": config.codebook_size,
        "codebook": config.codebook,
        "alpha": config.alpha,
        "decay": config.decay,
        "kmeans_init": config.kmeans_init,
        "dead_code_threshold": config.dead_code_threshold,
        "manual_ema_update": config.accumulate > 1,
    }
    if config.model == "vqvae":
        model: VQVAE | VQVAE2 = VQVAE(data.channels, downscale=config.downscale, **shared)
    elif config.model == "vqvae2":
        model = VQVAE2(data.channels, downscales=config.downscales, **shared)
    else:
        raise ValueError(f"model must be vqvae, vqvae2 or vae, got {config.model!r}")
    check_size(model, data)
    return model


def check_size(model: Autoencoder, data: ImageData) -> None:
    """ValueError naming the remedy unless the model takes images of ``data``'s size and channels."""
    if isinstance(model, VAE):
        fits, wanted = data.size == model.image_size, f"{model.image_size[0]}x{model.image_size[1]}"
    else:
        fits = all(size % model.total_downscale == 0 for size in data.size)
        wanted = f"a multiple of {model.total_downscale} in height and width"
    if not fits:
        raise ValueError(
            f"{data.name} has images of {data.size[0]}x{data.size[1]}, the model takes {wanted}; "
            f"give a size (--size) or other downscales"
        )
    if model.in_channels != data.channels:
        raise ValueError(
            f"{data.name} has {data.channels} channels, the model takes {model.in_channels}; "
            f"give channels (--channels {model.in_channels})"
        )
