"""Several codes at every position, from training to samples; and the weights that Sonnet starts from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from models import VQVAE, VQVAE2
from models.autoencoders.blocks import initialize_as_sonnet
from models.cli import main
from models.codes.store import CodeStore
from models.data import DataConfig, load_data
from models.runs.build import build_model
from models.runs.config import TrainConfig

SHAPE = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 3, "codebook_size": 16}


def test_shapes_and_what_the_codes_cost() -> None:
    model = VQVAE(3, heads=10, downscale=4, likelihood="categorical", **SHAPE).eval()
    x = torch.rand(2, 3, 32, 32) - 0.5
    (codes,) = model.encode(x)
    assert codes.shape == (2, 8, 8, 10)
    assert model.codebook_sizes == ((16,) * 10,)
    assert model.code_shapes((32, 32)) == ((8, 8, 10),)
    assert [level.shape for level in model.look_up([codes])] == [(2, 30, 8, 8)]
    with torch.no_grad():
        output = model(x)
        nats = model.nats(x, output)["codes_uniform"]
    torch.testing.assert_close(nats, torch.full((2,), 640 * math.log(16)))
    torch.testing.assert_close(model.reconstruct(x), output.reconstruction)
    codebook = model.quantizer.codebook
    parts = model.to_embedding(model.encoder(x)).unflatten(1, (10, 3))  # [B, heads, D, 8, 8]
    distances = (parts.movedim(2, -1).unsqueeze(-2) - codebook).square().sum(-1)  # [B, heads, 8, 8, K]
    assert torch.equal(distances.argmin(-1).movedim(1, -1), codes), "each part its own nearest code"
    again = VQVAE(**model.config)
    again.load_state_dict(model.state_dict())
    hierarchy = VQVAE2(1, heads=2, downscales=(2, 2), **SHAPE).eval()
    assert [level.shape for level in hierarchy.encode(x[:, :1, :8, :8])] == [(2, 2, 2, 2), (2, 4, 4, 2)]
    with pytest.raises(ValueError, match="heads is 0; accepted: an integer of at least 1"):
        VQVAE(heads=0)


def test_a_model_of_before_has_one_head(tmp_path: Path) -> None:
    VQVAE(1, downscale=2, **SHAPE).save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["arguments"].pop("heads") == 1
    (tmp_path / "config.json").write_text(json.dumps(description))
    assert VQVAE.from_pretrained(tmp_path).codebook_sizes == ((16,),)


def test_commands_with_two_codes_a_position(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--limit", "64", "--batch-size", "32", "--epochs", "1", "--no-progress", "--accelerator", "cpu"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SHAPE.items()]
    assert main(["train", "--heads", "2", "--downscale", "2", "--pictures-every", "0", *flags, *quick]) == 0
    assert main(["encode", "runs/run", "--device", "cpu"]) == 0
    assert CodeStore("runs/run/codes").train.batch([0])[0].shape == (1, 4, 4, 2)
    prior = ["train-prior", "--codes", "runs/run/codes", "--width", "8", "--layers", "1", "--heads", "2"]
    assert main([*prior, "--batch-size", "32", "--epochs", "1", "--no-progress", "--accelerator", "cpu"]) == 0
    assert main(["sample", "runs/prior", "--device", "cpu", "--count", "1"]) == 0
    assert main(["evaluate", "runs/run", "--prior", "runs/prior", "--device", "cpu"]) == 0
    figures = json.loads(Path("runs/run/evaluation-test.json").read_text())
    assert figures["bits_codes_uniform"] == pytest.approx(32 * math.log2(16) / 64)
    assert figures["bits_per_dim"] > figures["bits_decoder"]


def test_weights_as_sonnet_starts_them() -> None:
    data = load_data(DataConfig(limit=10), stream=True)
    model = build_model(TrainConfig(init_weights="sonnet", hidden=128, downscale=2), data)
    other = build_model(TrainConfig(hidden=128, downscale=2), data)
    wide = [
        (model.encoder.conv, 64 * 9),
        (model.decoder.conv, 64 * 9),
        (model.encoder.residual[0].conv_in, 128 * 9),
        (model.decoder.up[0], 128 * 16),
    ]
    for layer, inputs in wide:
        deviation = 1 / math.sqrt(inputs)
        # Of a normal distribution cut off at two deviations.
        assert layer.weight.std().item() == pytest.approx(0.8796 * deviation, rel=0.05)
        assert layer.weight.abs().max() <= 2 * deviation
        assert layer.bias.abs().max() == 0
    assert other.encoder.conv.bias.abs().max() > 0
    linear = torch.nn.Linear(3, 3)
    before = linear.weight.clone()
    initialize_as_sonnet(linear)
    assert torch.equal(linear.weight, before)
