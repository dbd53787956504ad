"""Autoregressive decoders: what a pixel sees, that p(x | z) sums to one, decoding, and the commands."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from models import VAE, VQVAE, VQVAE2, load_data, load_pretrained
from models.autoencoders.base import Autoencoder
from models.autoencoders.likelihoods import make_likelihood
from models.autoencoders.pixel_decoder import PixelDecoder
from models.evaluation.calibration import squared_error
from models.evaluation.evaluate import evaluate
from models.runs.build import build_model
from models.runs.config import TrainConfig

AUTOREGRESSIVE = {"decoder": "autoregressive", "decoder_width": 6, "decoder_layers": 2}
CODES = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 8}


def models(likelihood: str) -> list[Autoencoder]:
    torch.manual_seed(0)
    made = [
        VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4), likelihood=likelihood, **AUTOREGRESSIVE),
        VQVAE(1, downscale=2, likelihood=likelihood, **CODES, **AUTOREGRESSIVE),
        VQVAE2(1, downscales=(2, 2), likelihood=likelihood, **CODES, **AUTOREGRESSIVE),
    ]
    return [model.eval() for model in made]


def test_a_pixel_sees_all_pixels_before_it_and_the_latents_alone() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(2, 4, width=8, layers=2).double()
    features = torch.randn(16, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(16, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = decoder(features, x).flatten(2)  # [16, 4, 20]
    for pixel in range(20):
        of_x, of_features = torch.autograd.grad(
            parameters[:, :, pixel].sum(), (x, features), retain_graph=True
        )
        seen = of_x.abs().sum((0, 1)).flatten() > 0
        assert seen.tolist() == [earlier < pixel for earlier in range(20)]
        assert float(of_features[:, :, pixel // 5, pixel % 5].abs().sum()) > 0


@pytest.mark.parametrize("likelihood", ["logistic", "categorical"])
def test_the_probabilities_of_all_images_sum_to_one(likelihood: str) -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(1, 256 if likelihood == "categorical" else 2, width=8, layers=1)
    images = torch.cartesian_prod(torch.arange(256), torch.arange(256)) / 255 - 0.5  # every image of 1 x 2
    features = torch.randn(1, 8, 1, 2).expand(len(images), -1, -1, -1)
    x = images.view(-1, 1, 1, 2)
    with torch.no_grad():
        log_prob = make_likelihood(likelihood, 1).log_prob(decoder(features, x), x).sum((1, 2, 3))
    assert float(log_prob.double().exp().sum()) == pytest.approx(1, abs=1e-4)


def test_decoding_is_the_forward_pass_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    decoder, likelihood = PixelDecoder(2, 4, width=8, layers=3), make_likelihood("logistic", 2)
    features = torch.randn(3, 8, 4, 5)
    expected = torch.zeros(3, 2, 4, 5)
    with torch.no_grad():
        for row, column in itertools.product(range(4), range(5)):
            means = likelihood.mean(decoder(features, expected)).clamp(-0.5, 0.5)
            expected[:, :, row, column] = means[:, :, row, column]
    torch.testing.assert_close(decoder.decode(features, likelihood), expected)


@pytest.mark.parametrize("likelihood", ["mse", "gaussian", "logistic", "categorical"])
def test_models_train_save_and_decode_with_it(likelihood: str, tmp_path: Path) -> None:
    x = torch.rand(4, 1, 8, 8) - 0.5
    for model in models(likelihood):
        output = model.train()(x)
        output.loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        model.eval().save_pretrained(tmp_path)
        again = load_pretrained(tmp_path)
        reconstruction = model.reconstruct(x)
        torch.testing.assert_close(again.reconstruct(x), reconstruction)
        # Not the means given the true pixels, which forward has at hand.
        output = model(x)
        assert not torch.allclose(output.reconstruction, reconstruction, atol=1e-4)
        torch.testing.assert_close(model.clean_reconstruction(x, output), reconstruction)


def test_the_fixed_variance_is_that_of_what_the_bound_sees() -> None:
    """The squared error of the means given the true pixels, by which log p(x | z) is computed."""
    data = load_data(TrainConfig(data="digits", limit=50))
    _, model, _ = models("mse")
    x = data.train.batch(range(50)).float() / 255 - 0.5
    with torch.no_grad():
        expected = (model(x).reconstruction - x).square().mean()
    torch.testing.assert_close(squared_error(model, data.train, 50), expected.view(1))


def test_evaluation_has_the_bound_of_pixels_given_those_before() -> None:
    data = load_data(TrainConfig(data="digits", limit=30))
    _, model, _ = models("categorical")
    x = data.test.batch(range(30)).float() / 255 - 0.5
    with torch.no_grad():
        nats = -model.decoder_log_prob(x, model.encode(x)).sum()
    figures = evaluate(model, data)
    expected = float(nats) / (30 * 64 * torch.log(torch.tensor(2.0)))
    assert figures["bits_decoder"] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match=r"codes is of 29 images"):
        model.decoder_log_prob(x, [level[1:] for level in model.encode(x)])


def test_settings_reach_the_model_and_are_checked() -> None:
    data = load_data(TrainConfig(data="digits", limit=30))
    for kind in ("vae", "vqvae", "vqvae2"):
        config = TrainConfig(model=kind, hidden=8, downscale=2, downscales=(2, 2), **AUTOREGRESSIVE)
        decoder = build_model(config, data).pixels
        assert decoder is not None
        assert (len(decoder.layers), decoder.pixel.out_features) == (2, 6)
        assert build_model(config.replace(decoder="independent"), data).pixels is None
    with pytest.raises(ValueError, match="decoder is 'pixelcnn'; accepted: 'independent', 'autoregressive'"):
        TrainConfig(decoder="pixelcnn")
    with pytest.raises(ValueError, match="ndim is 1; accepted: 2 with decoder 'autoregressive'"):
        VQVAE(1, ndim=1, decoder="autoregressive")
    with pytest.raises(ValueError, match="decoder_layers is 0; accepted"):
        VAE(1, 8, decoder_layers=0)
