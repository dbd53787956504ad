"""The figures of `evaluate` and of its meter against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hierarchy_support import CODES, hierarchy

from models import VAE, VQVAE, VQVAE2
from models.data import DataConfig, load_data, to_float
from models.evaluation.evaluate import evaluate
from models.evaluation.metrics import ReconstructionMeter, similarities, ssim

TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": CODES}


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=150))


def test_evaluate_measures_the_split_asked_for_and_learns_nothing(data) -> None:
    model = VQVAE(1, downscale=2, likelihood="gaussian", **TINY).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, data, split="validation", batch_size=64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = to_float(data.validation.batch(range(len(data.validation))))
    with torch.no_grad():
        output = model.eval()(x)
    truth = (output.reconstruction.clamp(-0.5, 0.5) - x).square().mean().item()
    assert found["mse"] == pytest.approx(truth, rel=1e-5)
    assert found["commitment"] == pytest.approx(output.terms["commitment"].item(), rel=1e-5)


def test_a_vae_reconstructs_without_noise_and_its_bits_take_a_seed(data) -> None:
    model = VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4), likelihood="gaussian").eval()
    x = to_float(data.test.batch(range(150)))
    with torch.no_grad():
        truth = (model.reconstruct(x).clamp(-0.5, 0.5) - x).square().mean().item()
    first, second = (evaluate(model, data, seed=seed) for seed in (1, 2))
    assert first["mse"] == second["mse"] == pytest.approx(truth, rel=1e-5)
    assert first["bits_kl"] == second["bits_kl"]
    assert first["bits_decoder"] != second["bits_decoder"]


def test_bits_of_codes_are_those_of_each_level_given_the_class_and_the_level_above(data) -> None:
    """Priors in train mode, whose dropout would show."""
    priors = hierarchy((1, 2, 4))
    model = VQVAE2(1, downscales=(2, 2, 2), likelihood="gaussian", **TINY).eval()
    found = evaluate(model, data, priors=priors)
    x, labels = to_float(data.test.batch(range(150))), data.test.labels
    top, middle, bottom = model.encode(x)
    for prior in priors:
        prior.eval()
    with torch.no_grad():
        nats = priors[0](top, labels) + priors[1](middle, labels, top) + priors[2](bottom, labels, middle)
    bits = -nats.sum().item() / (150 * 64 * math.log(2))
    assert found["bits_codes_prior"] == pytest.approx(bits, rel=1e-5)


def test_figures_clamp_and_add_up_batches_of_unequal_size_and_codes(data) -> None:
    x = to_float(data.test.batch(range(20)))
    y = x + 0.6 * torch.randn(x.shape)  # beyond black and white
    codes = torch.arange(20).view(20, 1, 1) // 5  # four of eight, five times each
    meter = ReconstructionMeter([(8,)])
    meter.update(x[:5], y[:5], [codes[:5]])
    meter.update(x[5:], y[5:], [codes[5:]])
    found = meter.compute(variance=1.0)
    assert found["mse"] == pytest.approx((y.clamp(-0.5, 0.5) - x).square().mean().item())
    assert found["ssim"] == pytest.approx(ssim(y.clamp(-0.5, 0.5), x).mean().item())
    assert found["perplexity"] == pytest.approx(4.0, rel=1e-5)
    assert found["usage"] == 0.5


@pytest.mark.parametrize("size", [8, 32])
def test_ssim_takes_pixels_to_span_one(size: int) -> None:
    """Constant images a and b have (2 a b + c) / (a^2 + b^2 + c); at a = 0.01 and b = 0, c = 0.01^2 tells."""
    grey, black = torch.full((1, 1, size, size), 0.01 - 0.5), torch.full((1, 1, size, size), -0.5)
    assert ssim(grey, black).item() == pytest.approx(0.5, abs=1e-3)


def test_ssim_is_the_same_inside_autocast() -> None:
    """As at the validations of a run in bfloat16, whose pictures are smooth at first."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.rand(2, 3, 32, 32, generator=generator)
    y = x + 0.02 * torch.rand(x.shape, generator=generator)
    expected = ssim(y, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(y, x), expected)


def test_ssim_of_small_images_takes_a_uniform_window_of_five() -> None:
    """Its definition over the windows around all pixels, the border reflected."""
    x, y = torch.rand(2, 1, 1, 8, 8)
    a, b = (F.unfold(F.pad(t, (2, 2, 2, 2), mode="reflect"), 5)[0] for t in (x, y))  # [25, 64]
    covariance = (a * b).mean(0) - a.mean(0) * b.mean(0)
    luminance = (2 * a.mean(0) * b.mean(0) + 1e-4) / (a.mean(0) ** 2 + b.mean(0) ** 2 + 1e-4)
    contrast = (2 * covariance + 9e-4) / (a.var(0, correction=0) + b.var(0, correction=0) + 9e-4)
    truth = (luminance * contrast).mean().item()
    assert ssim(x - 0.5, y - 0.5).item() == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize("size", [(32, 24), (16, 16), (8, 8), (5, 9)])
def test_similarity_by_both_definitions(size: tuple[int, int]) -> None:
    """Against windows moved over the image by hand: around all pixels of the reflected one, and inside."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    small = min(size) < 16
    width = 5 if small else 11
    line = torch.ones(5) if small else torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2)
    window = torch.outer(line, line).double()
    window /= window.sum()

    def mean_over(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        patches = [image.unfold(2, width, 1).unfold(3, width, 1) for image in (first, second)]
        means = [(patch * window).sum((-2, -1)) for patch in patches]
        squares = [(patch * patch * window).sum((-2, -1)) for patch in patches]
        product = (patches[0] * patches[1] * window).sum((-2, -1)) - means[0] * means[1]
        variances = [square - mean * mean for square, mean in zip(squares, means, strict=True)]
        c1, c2 = 0.01**2, 0.03**2
        above = (2 * means[0] * means[1] + c1) * (2 * product + c2)
        below = (means[0] ** 2 + means[1] ** 2 + c1) * (variances[0] + variances[1] + c2)
        return (above / below).flatten(1).mean(1)

    pad = width // 2
    reflected = [torch.nn.functional.pad(image, (pad,) * 4, mode="reflect") for image in (x, y)]
    everywhere, inside = similarities((x - 0.5).float(), (y - 0.5).float())
    torch.testing.assert_close(everywhere.double(), mean_over(*reflected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inside.double(), mean_over(x, y), rtol=1e-4, atol=1e-5)
    assert torch.equal(ssim((x - 0.5).float(), (y - 0.5).float()), everywhere)


def test_psnr_of_the_mean_error_and_mean_of_the_images() -> None:
    x = torch.zeros(2, 1, 8, 8)
    y = x + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    meter = ReconstructionMeter([])
    meter.update(x, y, [])
    figures = meter.compute(1.0)
    assert figures["mean_psnr"] == pytest.approx((20 + 40) / 2, abs=1e-4)
    assert figures["psnr"] == pytest.approx(-10 * math.log10((0.01 + 0.0001) / 2), abs=1e-4)
    other = ReconstructionMeter([])
    other.set_sums(meter.sums())
    assert other.compute(1.0) == figures
