"""Whether a decoder uses its latents, or models the images without them (posterior collapse)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.autoencoders.base import Autoencoder
from models.autoencoders.discrete import require_codes
from models.autoencoders.vae import VAE, kl_of_dimensions
from models.data import BatchLoader, ImageSplit, to_float
from models.pretrained import evaluating

ACTIVE_VARIANCE = 0.01  # of a unit's mean over the images (Burda et al. 2016, arXiv:1509.00519)


class LatentUse(NamedTuple):
    """What the latents of a split carry.

    kl: KL of each dimension of a VAE's latent, the mean over the images, in nats: float64 ``[L]``; empty
    for codes. active_units: dimensions whose mean varies over the images by more than ``ACTIVE_VARIANCE``;
    None for codes. nats_lost: by which log p(x | z) of an image falls when z is that of another image, the
    mean over the images: near 0 where the decoder does without z.
    """

    kl: Tensor
    active_units: int | None
    nats_lost: float


@torch.no_grad()
def latent_use(model: Autoencoder, split: ImageSplit, *, batch_size: int = 100, seed: int = 0) -> LatentUse:
    """How a model uses its latents on ``split``; the model stays in its mode and on its device.

    seed: of the noise of a VAE's latents. ValueError unless ``split`` has two images or more.

    For example, ``latent_use(vae, data.test).active_units`` of a collapsed VAE is 0.
    """
    if len(split) < 2:
        raise ValueError("split is of fewer than 2 images; accepted: 2 or more, as latents are exchanged")
    device = next(model.parameters()).device
    lost, latents = 0.0, _Latents()
    first: Tensor | None = None  # the image whose latent the last one gets
    before: Tensor | None = None
    with evaluating(model), torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for images, _ in BatchLoader(split, batch_size):
            x = to_float(images.to(device))
            if isinstance(model, VAE):
                latents.add(*model.encode(x))
            first = x[:1] if first is None else first
            pair = x if before is None else torch.cat([before, x])
            lost += float(_nats_lost(model, pair[:-1], pair[1:]))
            before = x[-1:]
        assert first is not None
        assert before is not None
        lost += float(_nats_lost(model, before, first))
    return LatentUse(latents.kl(), latents.active_units(), lost / len(split))


class _Latents:
    """Sums over the images of a split of what q(z | x) is."""

    def __init__(self) -> None:
        self.images = 0
        self.sums: list[Tensor] = []  # of KL, mean and squared mean: float64 [L] each

    def add(self, mean: Tensor, log_variance: Tensor) -> None:
        values = (kl_of_dimensions(mean, log_variance), mean, mean.double().square())
        sums = [value.double().sum(0).cpu() for value in values]
        self.sums = [total + more for total, more in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.images += len(mean)

    def kl(self) -> Tensor:
        return self.sums[0] / self.images if self.sums else torch.zeros(0, dtype=torch.float64)

    def active_units(self) -> int | None:
        if not self.sums:
            return None
        mean, square = self.sums[1] / self.images, self.sums[2] / self.images
        return int((square - mean.square() > ACTIVE_VARIANCE).sum())


def _nats_lost(model: Autoencoder, x: Tensor, others: Tensor) -> Tensor:
    """Sum over the images of log p(x | z(x)) - log p(x | z(other)): ``[]``."""
    if isinstance(model, VAE):
        own, other = (model.decoder_log_prob(x, model.draw(*model.encode(of))) for of in (x, others))
    else:
        codes_model = require_codes(model)
        own, other = (codes_model.decoder_log_prob(x, codes_model.encode(of)) for of in (x, others))
    return (own.double() - other.double()).sum()
