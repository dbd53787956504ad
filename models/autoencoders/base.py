"""What every autoencoder's forward returns, and the models there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from models.autoencoders.vae import VAE
    from models.autoencoders.vqvae import VQVAE
    from models.autoencoders.vqvae2 import VQVAE2

    CodeModel: TypeAlias = VQVAE | VQVAE2  # levels are ordered from the top (coarsest) to the bottom
    Autoencoder: TypeAlias = VAE | VQVAE | VQVAE2


class AutoencoderOutput(NamedTuple):
    """Result of ``model(x)`` for VAE, VQVAE and VQVAE2."""

    reconstruction: Tensor  # x's shape, the mean of p(x | z)
    loss: Tensor  # [], to be minimised
    terms: dict[str, Tensor]  # the parts of the loss, [] each, detached
    codes: tuple[Tensor, ...]  # [B, *S_level] int64, top level first; empty for the VAE
