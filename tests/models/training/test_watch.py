"""What is noticed in training that goes wrong without an error: each on purpose, none in a healthy run."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_support import settings, train

from models import VQVAE2
from models.data import DataConfig, load_data
from models.training.watch import LossWatch, PositionEntropy, TrainingWatch, runs_away


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=256))


def warnings_of(folder: Path) -> list[str]:
    file = folder / "warnings.txt"
    return file.read_text().splitlines() if file.is_file() else []


def test_a_healthy_run_warns_of_nothing(tmp_path: Path, data, capsys) -> None:
    train(settings(tmp_path, name="a", epochs=4), data)
    assert warnings_of(tmp_path / "a") == []
    assert capsys.readouterr().err == ""


def test_a_collapsed_codebook_is_named_once(tmp_path: Path, data, capsys) -> None:
    """All rows choose one of 64 codes, as the others are far away."""
    changes = {"codebook_size": 64, "kmeans_init": False, "dead_code_threshold": 0.0, "codebook": "gradient"}
    changes |= {"name": "a", "lr": 1e-6}
    with pytest.MonkeyPatch.context() as patch:
        from models.training import autoencoder

        def far(config, data, build=autoencoder.build_model):
            model = build(config, data)
            with torch.no_grad():
                model.quantizer.codebook[1:] += 1e3
            return model

        patch.setattr(autoencoder, "build_model", far)
        train(settings(tmp_path, epochs=2, **changes), data)
        train(settings(tmp_path, epochs=3, **changes), data, resume=True)
    (line,) = warnings_of(tmp_path / "a")
    assert "1 of 64 codes were used in epoch 1: the codebook has collapsed" in line
    assert "--kmeans-init" in line
    assert "--dead-code-threshold" in line
    assert capsys.readouterr().err.count("collapsed") == 1


@pytest.mark.parametrize("size", [2, 16])
def test_of_few_codes_one_in_use_is_a_collapse(tmp_path: Path, size: int) -> None:
    """A twentieth of them is less than one."""
    watch = TrainingWatch(settings(tmp_path, codebook_size=size))
    told: list[str] = []
    watch._say = lambda trainer, kind, text: told.append(text)  # type: ignore[method-assign]
    trainer = SimpleNamespace(current_epoch=0)
    counts = torch.zeros(size, dtype=torch.int64)
    counts[0] = 1000
    watch._check_usage(trainer, "", 0, counts)  # type: ignore[arg-type]
    counts[1] = 1
    watch._check_usage(trainer, "", 0, counts)  # type: ignore[arg-type]
    (line,) = told
    assert f"1 of {size} codes" in line


def test_a_learning_rate_that_diverges_is_named(tmp_path: Path, data) -> None:
    train(settings(tmp_path, name="a", model="vqvae", lr=0.5, epochs=12, seed=3), data)
    assert any(
        line.startswith("diverging: ") and "--lr, now 0.5" in line for line in warnings_of(tmp_path / "a")
    )


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        ([1.0] + [0.1] * 5 + [1.8] * 5, False),
        ([1.0] + [0.1] * 5 + [2.0] * 5, True),
        ([1.0] + [0.1] * 3 + [50.0] * 2 + [0.1] * 5, False),
        ([1.0] + [1.4] * 5, False),
        ([1.0] + [1.6] * 5, True),
        ([0.5] + [-1.5] * 5 + [2.4] * 5, False),
        ([0.5] + [-1.5] * 5 + [2.6] * 5, True),
        ([math.nan] * 10, False),
    ],
    ids=[
        "back",
        "above",
        "two_peaks",
        "slightly_higher",
        "at_once",
        "negative_back",
        "negative_above",
        "nan",
    ],
)
def test_what_is_a_diverging_loss(losses: list[float], diverges: bool) -> None:
    watch = LossWatch()
    assert any(watch.add(loss) is not None for loss in losses) == diverges


@pytest.mark.parametrize(
    ("commitment", "reconstruction", "expected"),
    [
        ([9, 1, 1.5, 2, 2.5, 3, 3.5], [7, 6, 5.9, 5.8, 5.7, 5.6, 5.5], True),
        ([9, 1, 1.5, 2, 2.5, 3, 3.5], [7, 6, 5, 4, 3, 2, 1], False),
        ([9, 1, 1.5, 2, 2.5, 3, 3.5], [7, 6, 5.9, 6, 5.7, 5.6, 5.5], False),
        ([9, 1, 1.1, 1.2, 1.3, 1.4, 1.5], [7, 6, 5.9, 5.8, 5.7, 5.6, 5.5], False),
        ([9, 1, 1.5, 1.4, 2.5, 3, 3.5], [7, 6, 5.9, 5.8, 5.7, 5.6, 5.5], False),
        ([1, 1.5, 2, 2.5, 3, 3.5], [6, 5.9, 5.8, 5.7, 5.6, 5.5], False),
    ],
    ids=["grows", "still_learns", "reconstruction_too", "slowly", "not_always", "from_the_first_on"],
)
def test_when_the_encoder_runs_away(
    commitment: list[float], reconstruction: list[float], expected: bool
) -> None:
    assert runs_away(list(zip(commitment, reconstruction, strict=True))) == expected


def test_entropy_given_the_position() -> None:
    """A code that marks its position has none, however many there are; a free one has that of its draw."""
    marks = PositionEntropy([64])
    marks.update(torch.arange(64).view(1, 8, 8).expand(100, 8, 8))
    assert marks.compute() == (0.0, math.log(64))
    free = PositionEntropy([4, 2])
    torch.manual_seed(0)
    free.update(torch.stack([torch.randint(0, 4, (3000, 20, 20)), torch.zeros(3000, 20, 20).long()], dim=-1))
    nats, most = free.compute()
    assert most == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert nats == pytest.approx(math.log(4) / 2, rel=1e-3)
    assert free.counts[0].shape == (64, 4)


@pytest.mark.parametrize("empty", [True, False])
def test_an_empty_level_is_named(tmp_path: Path, data, empty: bool) -> None:
    """The top level marks the position, whatever the image; in the other run it is noise."""
    from models.training import autoencoder

    def marking(config, data, build=autoencoder.build_model):
        model = build(config, data)
        assert isinstance(model, VQVAE2)
        marks = torch.eye(4).view(1, 4, 2, 2)
        model.to_embedding[1].register_forward_hook(
            lambda *given: given[2] * 0 + (marks if empty else torch.randn_like(given[2]))
        )
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoder, "build_model", marking)
        train(settings(tmp_path, name="a", model="vqvae2", downscales=(2, 2), epochs=1), data)
    lines = [line for line in warnings_of(tmp_path / "a") if line.startswith("empty")]
    assert len(lines) == empty
    for line in lines:
        assert line.startswith("empty_top: the top level is nearly empty")
        assert "0.00 nats of 2.77" in line
        assert "--downscales" in line
