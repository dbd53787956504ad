"""Likelihoods are probability distributions over the 256 levels, and their losses point to the data."""

from __future__ import annotations

import math

import pytest
import torch

from models import VQVAE
from models.autoencoders.likelihoods import KINDS, LEVELS, Gaussian, make_likelihood, to_levels
from models.pretrained import load_weights

ALL_LEVELS = torch.arange(LEVELS).view(LEVELS, 1, 1).float() / 255 - 0.5


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("variance", [1e-5, 0.003, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_all_levels_sum_to_one(kind: str, variance: float, scale: float) -> None:
    torch.manual_seed(0)
    likelihood = make_likelihood(kind, 1, variance)
    for _ in range(5):
        parameters = scale * torch.randn(1, likelihood.parameters_per_channel, 1).expand(LEVELS, -1, -1)
        log_prob = likelihood.log_prob(parameters, ALL_LEVELS)
        assert log_prob.shape == ALL_LEVELS.shape
        assert not log_prob.isnan().any()
        assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize("scale", [0.01, 1.0])
@pytest.mark.parametrize("kind", ["mse", "gaussian", "logistic"])
def test_probabilities_of_sixteen_bits_sum_to_one(kind: str, scale: float) -> None:
    levels = torch.arange(65536).view(-1, 1, 1).float() / 65535 - 0.5
    likelihood = make_likelihood(kind, 1, 1e-4, levels=65536, scale=scale)
    parameters = torch.full((1, likelihood.parameters_per_channel, 1), 0.3).expand(65536, -1, -1)
    log_prob = likelihood.log_prob(parameters, levels).double()
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=2e-3)
    inner = log_prob.flatten()[1:-1]  # the outer two hold the tails
    most_likely = levels.flatten()[1 + inner.argmax()].item()
    assert most_likely == pytest.approx(0.3 * scale, abs=5e-4), "the mean is in units of the scale"
    assert likelihood.mean(parameters).unique().item() == pytest.approx(0.3 * scale)


def test_levels_and_scales_that_there_are_not() -> None:
    with pytest.raises(
        ValueError, match="likelihood is 'categorical'; accepted: 'mse', 'gaussian', 'logistic'"
    ):
        make_likelihood("categorical", 1, levels=65536)
    with pytest.raises(ValueError, match="levels is 1; accepted: an integer of at least 2"):
        make_likelihood("mse", 1, levels=1)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"scale is .*; accepted: a number above 0"):
            make_likelihood("mse", 1, scale=scale)


def test_gaussian_cell_equals_the_integral_of_the_density() -> None:
    likelihood = Gaussian(1, 0.01, learnt=True)
    mean = torch.full((LEVELS, 1, 1), 0.0371)
    normal = torch.distributions.Normal(mean.double(), math.sqrt(0.01))
    upper, lower = normal.cdf(ALL_LEVELS.double() + 0.5 / 255), normal.cdf(ALL_LEVELS.double() - 0.5 / 255)
    got = likelihood.log_prob(mean, ALL_LEVELS).exp()
    torch.testing.assert_close(got[1:-1], (upper - lower)[1:-1], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(got[0], upper[0])
    torch.testing.assert_close(got[-1], 1 - lower[-1])


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
def test_far_tails_stay_finite_and_ordered(kind: str) -> None:
    likelihood = make_likelihood(kind, 1, 1e-4)
    parameters = torch.zeros(LEVELS, likelihood.parameters_per_channel, 1) - 0.5
    parameters[:, 1:] = -9.0  # a logistic scale at its smallest
    log_prob = likelihood.log_prob(parameters, ALL_LEVELS).flatten()
    assert log_prob.isfinite().all()
    assert (log_prob.diff()[:-1] < 0).all(), "levels further from the mean must be less likely"


@pytest.mark.parametrize("kind", ["gaussian", "logistic", "categorical"])
def test_training_on_the_loss_finds_the_distribution(kind: str) -> None:
    """Fitted to samples of a known distribution, the cross-entropy comes down to its entropy."""
    torch.manual_seed(0)
    levels = (torch.randn(4096) * 12 + 140).round().clamp(0, 255)
    x = (levels / 255 - 0.5).view(-1, 1, 1)
    entropy = torch.distributions.Categorical(torch.bincount(levels.long(), minlength=256).float()).entropy()
    likelihood = make_likelihood(kind, 1, 0.05)
    parameters = torch.zeros(1, likelihood.parameters_per_channel, 1, requires_grad=True)
    own = list(likelihood.parameters()) if isinstance(likelihood, torch.nn.Module) else []
    optimizer = torch.optim.Adam([parameters, *own], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        likelihood.loss(parameters.expand(len(x), -1, -1), x).backward()
        optimizer.step()
    cross_entropy = -likelihood.log_prob(parameters.expand(len(x), -1, -1), x).mean()
    assert entropy.item() - 1e-3 < cross_entropy.item() < entropy.item() + 0.05


def test_mean_of_categorical_is_the_expected_level() -> None:
    likelihood = make_likelihood("categorical", 2)
    parameters = torch.full((1, 2 * LEVELS, 1), -50.0)
    parameters[0, 10] = parameters[0, 20] = 0.0  # channel 0: levels 10 and 20 equally
    parameters[0, LEVELS + 255] = 0.0  # channel 1: level 255
    torch.testing.assert_close(likelihood.mean(parameters).flatten(), torch.tensor([15 / 255 - 0.5, 0.5]))


def test_fixed_variance_scales_the_loss_and_is_calibrated_for_the_likelihood() -> None:
    likelihood = Gaussian(2, 0.25, learnt=False)
    x, mean = torch.rand(4, 2, 3) - 0.5, torch.zeros(4, 2, 3)
    torch.testing.assert_close(likelihood.loss(mean, x), (x**2).mean() / 0.25)
    before = likelihood.log_prob(mean, x).sum()
    likelihood.calibrate((x**2).mean((0, 2)))
    torch.testing.assert_close(likelihood.loss(mean, x), (x**2).mean() / 0.25)
    assert likelihood.log_prob(mean, x).sum() > before


def test_calibration_survives_saving_and_is_inferred_for_older_files(tmp_path) -> None:
    model = VQVAE(1, downscale=2, hidden=8, embedding_dim=4, codebook_size=8, variance=0.3)
    older = {key: value for key, value in model.state_dict().items() if key != "likelihood.calibrated"}
    assert not load_with(model, older).likelihood.calibrated, "a converted model of before the flag"
    model.likelihood.calibrate(torch.tensor([0.01]))
    model.save_pretrained(tmp_path)
    assert VQVAE.from_pretrained(tmp_path).likelihood.calibrated
    older["likelihood.log_variance"] = model.likelihood.log_variance
    assert load_with(model, older).likelihood.calibrated, "a trained run of before the flag"


def load_with(model: VQVAE, state: dict[str, torch.Tensor]) -> VQVAE:
    """A fresh model with the weights ``state``."""
    fresh = VQVAE(**model.config)
    load_weights(fresh, state, "file")
    return fresh


def test_levels_round_trip() -> None:
    assert torch.equal(to_levels(ALL_LEVELS).flatten(), torch.arange(LEVELS))
    with pytest.raises(ValueError, match=r"variance is 0\.0; accepted: a number above 0"):
        Gaussian(1, 0.0, learnt=True)
