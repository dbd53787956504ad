"""Figures that need more than a model: a calibrated variance, a feature network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_support import load

from models import VAE, VQVAE, TransformerPrior
from models.data import to_float
from models.evaluation.evaluate import evaluate

TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def data():
    return load("digits", limit=60)


@pytest.fixture
def model() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(1, downscale=2, **TINY).eval()


def test_a_variance_that_was_never_calibrated_is_not_taken_for_one(data, model: VQVAE) -> None:
    """With the constructor's variance of 1 the bits of any model would be more than 8."""
    before = {name: values.clone() for name, values in model.state_dict().items()}
    bits = evaluate(model, data)["bits_decoder"]
    assert bits < 8
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())
    x = to_float(data.validation.batch(range(60)))
    error = (model.reconstruct(x) - x).square().mean().item()
    model.likelihood.calibrate(torch.tensor([error]))
    assert evaluate(model, data)["bits_decoder"] == pytest.approx(bits, rel=1e-5)
    model.likelihood.calibrate(torch.tensor([100 * error]))
    assert evaluate(model, data)["bits_decoder"] > bits + 0.1, "what was calibrated is kept"


def test_priors_of_other_classes_are_refused(data, model: VQVAE) -> None:
    prior = TransformerPrior(16, 8, shape=(4, 4), layers=1, heads=2, num_classes=12)
    with pytest.raises(
        ValueError, match=r"classes of digits is 10; accepted: 12, those of the priors; give data with"
    ):
        evaluate(model, data, priors=[prior])


class Bytes(torch.nn.Module):
    """A feature network without parameters, on bytes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(2).mean(2)


class Trained(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(48, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1))


class Floats(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).mean((2, 3))


class Maps(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


@pytest.fixture
def saved(tmp_path: Path):
    pytest.importorskip("torchmetrics.image.fid")

    def save(network: torch.nn.Module) -> str:
        torch.jit.script(network).save(str(tmp_path / "features.pt"))
        return str(tmp_path / "features.pt")

    return save


@pytest.mark.parametrize("network", [Trained(), Bytes()], ids=["parameters", "none"])
def test_rfid_with_a_feature_network(network: torch.nn.Module, saved, data, model: VQVAE) -> None:
    assert evaluate(model, data, fid_weights=saved(network))["rfid"] > 0


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Floats(), r"fails on uint8 \[1, 3, 8, 8\]"),
        (Maps(), r"returns torch.float32 \[1, 3, 8, 8\]"),
    ],
    ids=["floats", "maps"],
)
def test_feature_networks_that_do_not_fit(network, message, saved, data, model: VQVAE, monkeypatch) -> None:
    monkeypatch.setattr(VQVAE, "forward", lambda *_: pytest.fail("the network is tried first"))
    with pytest.raises(
        ValueError, match=message + r".*; accepted: a network that takes uint8 \[B, 3, H, W\]"
    ):
        evaluate(model, data, fid_weights=saved(network))


def test_rfid_needs_two_images(saved, model: VQVAE) -> None:
    with pytest.raises(ValueError, match="the number of images is 1; accepted for rFID: 2 or more"):
        evaluate(model, load("digits", limit=1), fid_weights=saved(Bytes()))
    with pytest.raises(ValueError, match=r"nowhere\.pt', which does not exist"):
        evaluate(model, load("digits", limit=2), fid_weights="nowhere.pt")


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_leaves_mode_generator_and_gradients(training: bool) -> None:
    model = VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4)).train(training)
    model.decoder.train(not training)
    data = load("digits", limit=40)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    figures = evaluate(model, data)
    assert torch.equal(torch.rand(3), expected)
    assert (model.training, model.decoder.training) == (training, not training)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert evaluate(model, data) == figures, "the noise of the latent is that of the seed"
