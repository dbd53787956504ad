"""What settings add to the loss of an autoencoder, empty levels, weight decay and the end by time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from training_support import histories, settings, train

from models import VQVAE2
from models.data import BatchLoader, DataConfig, ImageData, load_data, to_float
from models.losses import gradient_difference
from models.runs.build import build_model
from models.training.modules import AutoencoderModule
from models.training.optimizer import fused_adam


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data(DataConfig(data="digits", limit=128))


def _hierarchy(**changes: object) -> VQVAE2:
    torch.manual_seed(0)
    return VQVAE2(
        1, downscales=(2, 2), hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=16, **changes
    )


def test_the_gradient_difference_is_that_of_neighbours_along_every_axis() -> None:
    x, y = torch.zeros(1, 1, 2, 3), torch.tensor([[[[0.0, 1.0, 1.0], [0.0, 1.0, 4.0]]]])
    down, across = (0 + 0 + 3) / 3, (1 + 0 + 1 + 3) / 4
    assert float(gradient_difference(x, y)) == pytest.approx(down + across)
    assert float(gradient_difference(x[:, :, 0], y[:, :, 0])) == pytest.approx(0.5)


def test_absolute_errors_are_added_with_their_weights(tmp_path: Path, data: ImageData) -> None:
    model = train(settings(tmp_path, name="run", l1=0.5, gradient_l1=2.0, epochs=1), data)
    x = to_float(data.validation.batch(range(len(data.validation))))
    with torch.no_grad():
        output = model(x)
    (history,) = histories(tmp_path / "run")
    l1, gradient = (history[f"validation/{name}"][1][-1] for name in ("l1", "gradient_l1"))
    assert l1 == pytest.approx(float((x - output.reconstruction).abs().mean()), rel=1e-4)
    assert gradient == pytest.approx(float(gradient_difference(x, output.reconstruction)), rel=1e-4)
    total = history["validation/loss"][1][-1]
    assert total == pytest.approx(float(output.loss) + 0.5 * l1 + 2 * gradient, rel=1e-3)


def test_images_are_augmented_in_training_and_not_in_validation(tmp_path: Path, data: ImageData) -> None:
    plain, changed, again = (
        settings(tmp_path, name=name, epochs=1, **extra)
        for name, extra in (("plain", {}), ("changed", {"shift": 0.3}), ("again", {"shift": 0.3}))
    )
    models = [train(config, data) for config in (plain, changed, again)]
    histories_of = histories(*(config.folder for config in (plain, changed, again)))
    losses = [history["train/loss"][1][0] for history in histories_of]
    assert losses[0] != losses[1] == losses[2]
    assert torch.equal(*(next(model.parameters()) for model in models[1:]))


def test_a_dropped_level_is_zeros_to_the_decoder_in_training_alone() -> None:
    model = _hierarchy().train()
    x = torch.rand(6, 1, 8, 8) - 0.5
    levels = [level.quantized for level in model._quantize(x, freeze=True)]
    model.level_dropout = (0.0, 1.0)
    top, bottom = model._drop_levels(levels)
    assert torch.equal(top, levels[0])
    assert (bottom == 0).all()
    model.level_dropout = (1.0, 1.0)
    assert all(torch.equal(*pair) for pair in zip(model._drop_levels(levels), levels, strict=True))
    model.level_dropout = (0.0, 0.5)
    torch.manual_seed(0)
    dropped = (model._drop_levels(levels)[1] == 0).flatten(1).all(1)
    assert 0 < int(dropped.sum()) < 6
    model.eval()
    assert all(torch.equal(*pair) for pair in zip(model._drop_levels(levels), levels, strict=True))
    before = model(x)
    model.level_dropout = ()
    assert torch.equal(before.reconstruction, model(x).reconstruction)


def test_the_share_of_dropped_levels_is_a_setting(tmp_path: Path, data: ImageData) -> None:
    config = settings(tmp_path, model="vqvae2", downscales=(2, 2), level_dropout=(0.0, 0.3))
    assert build_model(config, data).level_dropout == (0.0, 0.3)
    assert build_model(config.replace(level_dropout=(0.2,)), data).level_dropout == (0.2, 0.2)
    with pytest.raises(
        ValueError, match=r"level_dropout is 0\.1,0\.2,0\.3; accepted: one value, or one for each"
    ):
        config.replace(level_dropout=(0.1, 0.2, 0.3))


def test_weight_decay_spares_what_has_one_axis(tmp_path: Path, data: ImageData) -> None:
    model = _hierarchy()
    decayed, spared = fused_adam(model.parameters(), 1e-3, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert type(fused_adam(model.parameters(), 1e-3)) is torch.optim.Adam


def test_a_run_ends_when_its_minutes_are_over_and_stays_ended(tmp_path: Path, data: ImageData) -> None:
    config = settings(tmp_path, name="short", minutes=1e-6, epochs=3)
    train(config, data)
    state = torch.load(config.layout.last, weights_only=True)
    assert state["global_step"] == 1
    assert config.layout.best.is_file()
    weights = (config.layout.model / "model.safetensors").read_bytes()
    train(config, data, resume=True)
    assert torch.load(config.layout.last, weights_only=True)["global_step"] == 1
    assert (config.layout.model / "model.safetensors").read_bytes() == weights
    train(config.replace(minutes=60.0), data, resume=True)
    assert torch.load(config.layout.last, weights_only=True)["global_step"] == 6


def test_the_schedule_ends_with_the_minutes(tmp_path: Path, data: ImageData) -> None:
    config = settings(tmp_path, minutes=10.0, epochs=3, schedule="cosine")
    loader = BatchLoader(data.train, config.batch_size, shuffle=True)
    module = AutoencoderModule(build_model(config, data), config, loader, data.variance)
    factors = []
    for module.time_share in (0.0, 0.5, 1.0):
        factors.append(module._lr_factor(1))  # of six steps
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi / 6)), 0.5, 0.0])
