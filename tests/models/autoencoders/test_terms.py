"""What the losses of the autoencoders are made of, and which settings reach their parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import VAE, VQVAE, VQVAE2
from models.autoencoders.likelihoods import Gaussian
from models.autoencoders.vae import kl_divergence

SMALL = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 6, "codebook_size": 11}
BUILDERS = {
    "vae": lambda **options: VAE(2, 8, latent_dim=3, channels=(4, 4, 4, 4), **options),
    "vqvae": lambda **options: VQVAE(2, **SMALL, **options),
    "vqvae2": lambda **options: VQVAE2(2, **SMALL, **options),
}


def small_vae(**options: object) -> VAE:
    return VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4), **options)


@pytest.mark.parametrize(
    ("training", "share", "weight"), [(True, 1.0, 0.5), (True, 0.25, 0.125), (False, 0.25, 0.5)]
)
def test_beta_and_in_training_the_warm_up_weigh_the_kl_term(
    training: bool, share: float, weight: float
) -> None:
    model = small_vae(beta=0.5).train(training)
    model.kl_warmup_factor = share
    model.encoder[-1].bias.data.fill_(1.0)  # a mean and a variance far from those of the prior
    output = model(torch.rand(5, 1, 8, 8) - 0.5)
    assert output.terms["kl"] > 0.01
    torch.testing.assert_close(output.loss, output.terms["reconstruction"] + weight * output.terms["kl"])


@pytest.mark.parametrize("method", ["forward", "elbo"])
def test_the_latent_is_drawn_from_the_posterior(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and deviation of 4000 draws for one image, within more than 3 and 7 standard deviations."""
    model = small_vae()
    model.encoder[-1].bias.data = torch.tensor([0.0, 1.0, 2.0, -3.0, 0.0, 1.0])
    x = (torch.rand(1, 1, 8, 8) - 0.5).expand(4000, -1, -1, -1)
    drawn: list[torch.Tensor] = []
    decode = model._decode
    monkeypatch.setattr(model, "_decode", lambda z: drawn.append(z) or decode(z))
    with torch.no_grad():
        getattr(model, method)(x)
        mean, log_variance = model.encode(x[:1])
    torch.testing.assert_close(drawn[0].mean(0), mean[0], atol=0.15, rtol=0)
    torch.testing.assert_close(drawn[0].std(0), torch.exp(0.5 * log_variance[0]), atol=0, rtol=0.08)


def test_the_kl_term_is_computed_in_float32() -> None:
    """In 16 bits exp(v) - 1 - v cancels to nothing for a small v."""
    mean, log_variance = torch.zeros(1, 64).bfloat16(), torch.full((1, 64), 0.01).bfloat16()
    found = kl_divergence(mean, log_variance)
    assert found.dtype == torch.float32
    truth = kl_divergence(mean.double(), log_variance.double())
    torch.testing.assert_close(found.double(), truth, rtol=1e-2, atol=0)


def test_a_fresh_vae_keeps_the_size_of_its_signal() -> None:
    """Each of the eight convolutions gives about as much as it takes in, so that none drowns in noise."""
    model = VAE(1, 32, latent_dim=64, channels=(32, 64, 64, 64))
    ratios: list[float] = []
    for layer in (*model.encoder, *model.decoder):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(
                lambda _, given, out: ratios.append((out.std() / given[0].square().mean().sqrt()).item())
            )
    model(torch.randn(16, 1, 32, 32))
    assert len(ratios) == 8
    assert all(0.7 < ratio < 2.2 for ratio in ratios), ratios


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("kind", [VQVAE, VQVAE2])
def test_the_loss_is_the_sum_of_its_terms_over_all_levels(kind: type, codebook: str) -> None:
    """A codebook that learns by averages has no loss, so alpha takes part with gradients only."""
    model = kind(1, codebook=codebook, alpha=2.0, beta=0.5, **SMALL)
    output = model(torch.rand(4, 1, 16, 16) - 0.5)
    weight = 0.5 + (2.0 if codebook == "gradient" else 0.0)
    assert output.terms["commitment"] > 0
    torch.testing.assert_close(
        output.loss, output.terms["reconstruction"] + weight * output.terms["commitment"]
    )


def test_commitment_is_the_error_summed_over_levels() -> None:
    model = VQVAE2(1, downscales=(2, 2), beta=0.5, **SMALL).eval()
    errors: list[torch.Tensor] = []
    for layer in model.level_quantizers:
        layer.register_forward_hook(lambda _, given, out: errors.append(F.mse_loss(out.quantized, given[0])))
    output = model(torch.rand(4, 1, 16, 16) - 0.5)
    torch.testing.assert_close(output.terms["commitment"], errors[0] + errors[1])


@pytest.mark.parametrize("kind", [VQVAE, VQVAE2])
def test_quantizers_get_the_models_settings(kind: type) -> None:
    model = kind(
        1, decay=0.7, eps=1e-3, kmeans_init=True, dead_code_threshold=0.3, beta=0.6, **SMALL
    )  # fmt: skip
    for layer in model.level_quantizers:
        learns = layer._codebook
        assert (learns.decay, learns.eps) == (0.7, 1e-3)
        assert learns.needs_init
        assert learns.threshold_ema_dead_code == 0.3
        assert layer.commitment_weight == 0.6
        assert not layer.rotation_trick, "the papers copy gradients straight through"


def test_each_level_is_conditioned_on_all_levels_above() -> None:
    """The decoder of the middle level reads, beside its own codes, what the top level's decoder gave."""
    model = VQVAE2(1, downscales=(2, 2, 2), **SMALL).eval()
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    for conditioner in model.conditioners:
        conditioner.register_forward_hook(lambda _, given, out: calls.append((given[0], out)))
    model(torch.rand(2, 1, 16, 16) - 0.5)
    (_, from_top), (given_to_middle, _) = calls
    assert torch.equal(given_to_middle[:, : SMALL["embedding_dim"]], from_top)


@pytest.mark.parametrize("likelihood", ["mse", "gaussian"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_likelihood_starts_at_the_given_variance(kind: str, likelihood: str) -> None:
    model = BUILDERS[kind](likelihood=likelihood, variance=0.3)
    torch.testing.assert_close(model.likelihood.log_variance.exp(), torch.full((2,), 0.3))


def test_the_loss_of_a_learnt_variance_is_the_negative_log_density_in_nats() -> None:
    likelihood = Gaussian(2, 0.04, learnt=True)
    x, mean = torch.rand(3, 2, 4) - 0.5, torch.rand(3, 2, 4) - 0.5
    truth = -torch.distributions.Normal(mean, 0.2).log_prob(x).mean()
    torch.testing.assert_close(likelihood.loss(mean, x), truth)


def test_a_learnt_variance_is_not_calibrated() -> None:
    likelihood = Gaussian(2, 0.04, learnt=True)
    likelihood.calibrate(torch.ones(2))
    torch.testing.assert_close(likelihood.log_variance.exp(), torch.full((2,), 0.04))


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", BUILDERS)
def test_models_are_averaged(kind: str, use_buffers: bool) -> None:
    """Their flags are numbers: averages of models subtract and multiply whatever a model holds."""
    model = BUILDERS[kind](likelihood="mse")
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
    for _ in range(2):
        model(torch.rand(3, 2, 8, 8) - 0.5)
        averaged.update_parameters(model)
    assert not averaged.module.likelihood.calibrated
    model.likelihood.calibrate(torch.full((2,), 0.01))
    averaged.update_parameters(model)
    assert averaged.module.likelihood.calibrated
