"""Samples of a VAE, and images on the way from one to another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_support import write_prior, write_run

from models import VAE
from models.cli import main
from models.runs.config import TrainConfig


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = TrainConfig(name="run", runs=str(tmp_path), model="vae", latent_dim=3, limit=30)
    config.save(config.layout.config)
    torch.manual_seed(0)
    VAE(1, 8, latent_dim=3, channels=(4, 4, 4, 4)).save_pretrained(config.layout.model)
    return config.folder


def test_samples_are_decoded_draws_of_the_prior(run: Path, monkeypatch) -> None:
    monkeypatch.setattr("models.cli.latents.AT_ONCE", 3)
    command = ["sample", str(run), "--device", "cpu", "--count", "7"]
    assert main([*command, "--temperature", "0.5"]) == 0
    latents = torch.from_numpy(np.load(run / "samples" / "latents.npz")["latents"])
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([torch.randn(n, 3, generator=generator) for n in (3, 3, 1)])
    torch.testing.assert_close(latents, 0.5 * draws)
    model = VAE.from_pretrained(run / "model")
    with torch.no_grad():
        decoded = ((model.decode(latents) + 0.5) * 255).round().clamp(0, 255)
    with Image.open(run / "samples" / "samples.png") as image:
        factor = image.width // 62  # seven images of 8 with a gap of 1 between
        picture = np.asarray(image)[::factor, ::factor]
    for number in range(7):
        shown = picture[:8, 9 * number : 9 * number + 8]
        assert np.abs(shown - decoded[number, 0].numpy()).max() <= 1
    assert main([*command, "--seed", "1", "--out", str(run / "other")]) == 0
    assert not np.allclose(np.load(run / "other" / "latents.npz")["latents"], draws)


def test_interpolation_goes_from_one_reconstruction_to_the_other(run: Path) -> None:
    model = VAE.from_pretrained(run / "model")
    first, second = torch.rand(2, 2, 1, 8, 8) - 0.5
    between = model.interpolate(first, second, 5)
    assert between.shape == (2, 5, 1, 8, 8)
    torch.testing.assert_close(between[:, 0], model.reconstruct(first).detach())
    torch.testing.assert_close(between[:, -1], model.reconstruct(second).detach())
    middle = (model.encode(first)[0] + model.encode(second)[0]) / 2
    torch.testing.assert_close(between[:, 2], model.decode(middle).detach())
    assert main(["sample", str(run), "--device", "cpu", "--interpolate", "4"]) == 0
    with Image.open(run / "samples" / "interpolation.png") as image:
        assert image.width / image.height == pytest.approx((12 * 9 - 1) / (4 * 9 - 1))


def test_what_is_for_priors_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    for flags, message in (
        (["--classes", "1"], "--classes is for priors over codes; accepted for a VAE: --temperature and"),
        (["--top-k", "3"], "--top-k is for priors"),
        (["--mix", "training"], "--mix is for priors"),
        (["--judge-model", "cnn"], "--judge-model is for priors"),
        (["--count", "0"], "count is 0"),
        (["--count", str(10**15)], f"count is {10**15}, which makes {10**15} samples of 256 bytes, more"),
        (["--interpolate", "0"], "interpolate is 0; accepted: an integer of at least 1"),
    ):
        assert main(["sample", str(run), "--device", "cpu", *flags]) == 2
        assert message in capsys.readouterr().err
        assert not (run / "samples").exists()
    other = write_run(tmp_path / "codes", limit=30)
    assert main(["sample", str(other)]) == 2
    assert (
        "is the run of a VQVAE; accepted: that of a VAE, or of a prior over its codes"
        in capsys.readouterr().err
    )
    prior = write_prior(tmp_path / "prior", other)
    assert main(["sample", str(prior), "--interpolate", "2"]) == 2
    assert "interpolate is for a VAE" in capsys.readouterr().err
