"""A saved model's description is checked before anything is built from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from models import VQVAE, TransformerPrior, load_pretrained


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"config\.json holds a JSON list; accepted: an object; save the model again"),
        ("junk", r"config\.json is not valid JSON"),
        ('{"class": "VQVAE"}', r"config\.json: arguments is None; accepted: those of VQVAE by name"),
        (
            '{"class": ["VQVAE"], "arguments": {}}',
            r"config\.json: class is \['VQVAE'\]; accepted: PixelCNN, PixelSNAIL, Tr",
        ),
        (
            '{"class": "VQVAE", "arguments": {"colour": 1}}',
            r"config\.json: VQVAE cannot be built from its arguments \(.*keyword argument 'colour'",
        ),
        (
            '{"class": "VQVAE", "arguments": {"downscale": 3}}',
            r"config\.json: VQVAE cannot be built from its arguments \(downscale is 3; accepted: 2, 4",
        ),
    ],
)
def test_descriptions_of_models_are_checked(tmp_path: Path, text: str, message: str) -> None:
    VQVAE(1, downscale=2, hidden=8, embedding_dim=4, codebook_size=8).save_pretrained(tmp_path)
    load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_weights_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
        VQVAE(1, downscale=2, hidden=8, embedding_dim=4, codebook_size=8).save_pretrained(tmp_path)


def test_files_of_a_model_have_the_permissions_of_others_and_are_never_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").touch()
    model = VQVAE(1, downscale=2, hidden=8, embedding_dim=4, codebook_size=8)
    model.save_pretrained(tmp_path)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert set(modes) == {"other", "config.json", "model.safetensors"}
    assert len(set(modes.values())) == 1
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(path: Path, content: bytes, write=Path.write_bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written \(No space left on device\)"):
        model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(modes)
    assert (tmp_path / "model.safetensors").read_bytes() == before


class Masked(VQVAE):
    """A model of one's own with a buffer that is meant to be infinite."""

    def __init__(self) -> None:
        super().__init__(1, downscale=2, hidden=8, embedding_dim=4, codebook_size=8)
        self.config = {}
        self.register_buffer("mask", torch.full((2,), -torch.inf))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_loaded(tmp_path: Path, value: float) -> None:
    """Their figures would be NaN, and a success."""
    model = VQVAE(1, downscale=2, hidden=8, embedding_dim=4, codebook_size=8)
    prior = TransformerPrior(8, 8, shape=(2, 2), layers=1, heads=2)
    for number, damaged in enumerate((model, prior, Masked())):
        folder = tmp_path / str(number)
        damaged.save_pretrained(folder)
        load_pretrained(folder)
        name, weight = next(iter(damaged.named_parameters()))
        weight.data.view(-1)[-1] = value
        damaged.save_pretrained(folder)
        said = (
            rf"{number}/model\.safetensors is damaged: its weights hold NaN or infinity, the first in {name};"
        )
        with pytest.raises(ValueError, match=said):
            load_pretrained(folder)


def test_every_name_of_the_package_is_what_it_says() -> None:
    """Also after its module was imported, which sets an attribute of the package."""
    import importlib

    for name, home in models._HOME.items():
        importlib.import_module(home)
        assert getattr(models, name).__name__ == name
    assert sorted(models._HOME) == sorted(models.__all__)
    assert callable(models.train)
    assert callable(models.decode)
