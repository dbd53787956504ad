"""Whether latents are used: on models that are made to use them, and on ones that are made not to."""

from __future__ import annotations

import pytest
import torch

from models import VAE, VQVAE, load_data
from models.data import DataConfig
from models.evaluation.latents import latent_use

TINY = {"latent_dim": 3, "channels": (4, 4, 4, 4), "likelihood": "logistic"}


@pytest.fixture(scope="module")
def images():
    return load_data(DataConfig(data="digits", limit=25)).test


def vae(mean_scale: float) -> VAE:
    """Of the latent's three means two vary with the image, by ``mean_scale``; the third does not."""
    torch.manual_seed(0)
    model = VAE(1, 8, **TINY)
    last = model.encoder[-1]
    with torch.no_grad():
        last.weight.mul_(mean_scale / 0.01)  # the features of random weights hardly vary
        last.weight[2].zero_()
        last.weight[3:].zero_()
        last.bias.zero_()
    return model


def test_units_are_active_that_vary(images) -> None:
    use = latent_use(vae(2.0), images)
    assert use.active_units == 2
    assert use.kl.shape == (3,)
    assert bool((use.kl[:2] > 0.1).all())
    assert float(use.kl[2]) == 0
    assert latent_use(vae(0.0), images).active_units == 0


@pytest.mark.parametrize("kind", ["vae", "vqvae"])
def test_a_decoder_that_does_not_see_its_latents_loses_nothing(images, kind: str) -> None:
    torch.manual_seed(0)
    codes = {"hidden": 8, "embedding_dim": 4, "codebook_size": 16, "downscale": 2, "likelihood": "logistic"}
    model = vae(2.0) if kind == "vae" else VQVAE(1, **codes)
    used = latent_use(model, images).nats_lost
    first = model.from_latent if isinstance(model, VAE) else model.decoder.conv
    torch.nn.init.zeros_(first.weight)
    assert abs(latent_use(model, images).nats_lost) < 1e-9 < abs(used)


def test_all_images_count_whatever_the_batches(images) -> None:
    torch.manual_seed(0)
    model = VQVAE(1, hidden=8, embedding_dim=4, codebook_size=16, downscale=2, likelihood="logistic")
    whole = latent_use(model, images, batch_size=25)
    parts = latent_use(model, images, batch_size=4)
    assert parts.nats_lost == pytest.approx(whole.nats_lost, abs=1e-5)
    assert whole.active_units is None
    assert len(whole.kl) == 0
