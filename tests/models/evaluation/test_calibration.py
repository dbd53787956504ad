"""The fixed variance of a likelihood: of what it is the error, and that finding it changes nothing else."""

from __future__ import annotations

import pytest
import torch

from models import VAE, VQVAE
from models.data import DataConfig, load_data, to_float
from models.evaluation.calibration import calibrate, squared_error
from models.evaluation.evaluate import evaluate


def noisy_vae() -> VAE:
    """A decoder of strong weights, so that the noise of the latent shows in the image."""
    torch.manual_seed(0)
    model = VAE(1, 8, latent_dim=4, channels=(8, 8, 8, 8), likelihood="mse", variance=0.1).eval()
    with torch.no_grad():
        model.decoder[-1].weight.mul_(3)
    return model


def test_the_variance_of_a_vae_is_that_of_sampled_latents() -> None:
    data = load_data(DataConfig(limit=100))
    model = noisy_vae()
    before = torch.get_rng_state()
    error = squared_error(model, data.validation, 25)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(squared_error(model, data.validation, 25), error), "always with the same noise"
    x = to_float(data.validation.batch(range(100)))
    torch.manual_seed(1)
    with torch.no_grad():
        draws = [(model(x).reconstruction - x).square().mean((0, 2, 3)) for _ in range(30)]
        clean = (model.reconstruct(x) - x).square().mean((0, 2, 3))
    torch.testing.assert_close(error, torch.stack(draws).mean(0), rtol=0.1, atol=0)
    assert (error > 1.2 * clean).all()

    def bits(variance: torch.Tensor) -> float:
        model.likelihood.calibrate(variance)
        return float(evaluate(model, data, split="validation")["bits_per_dim"])

    assert bits(error) < bits(clean), "the bound is on those"


@pytest.mark.parametrize("heads", [1, 2])
def test_the_variance_of_a_model_with_codes_is_that_of_its_reconstructions(heads: int) -> None:
    data = load_data(DataConfig(limit=40))
    torch.manual_seed(0)
    shape = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 16, "downscale": 2}
    model = VQVAE(1, likelihood="mse", heads=heads, **shape).eval()
    calibrate(model, data.validation, 7)
    x = to_float(data.validation.batch(range(len(data.validation))))
    with torch.no_grad():
        error = (model.reconstruct(x) - x).square().mean((0, 2, 3))
    torch.testing.assert_close(model.likelihood.log_variance.exp(), error, rtol=1e-4, atol=0)
