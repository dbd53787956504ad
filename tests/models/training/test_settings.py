"""What the settings of a run do to its training: every step and figure against what it should be."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_support import histories, settings, train

from models import VQVAE2
from models.codes.description import CodeDescription
from models.data import DataConfig, ImageData, ImageSplit, load_data, to_float
from models.data.kinds import Images
from models.runs.build import build_model
from models.runs.config import PriorConfig, TrainConfig

SMALL_VAE = {"model": "vae", "likelihood": "gaussian", "beta": 1.0}


@pytest.fixture(scope="module")
def data() -> ImageData:
    """256 images to train on, which is four batches, and 179 to validate with, the last batch of 51."""
    return load_data(DataConfig(data="digits", limit=256))


def test_training_never_looks_at_the_test_split(tmp_path: Path, data: ImageData) -> None:
    class Unread(ImageSplit):
        """Says which images it holds, and shows none."""

        def __init__(self, split: ImageSplit) -> None:
            self.hashes, self.labels, self.count = split.hashes, split.labels, len(split)
            self.kind = split.kind

        def __len__(self) -> int:
            return self.count

        def batch(self, rows: object) -> torch.Tensor:
            pytest.fail("an image of the test split was read")

    train(settings(tmp_path, epochs=1), dataclasses.replace(data, test=Unread(data.test)))


def test_a_fixed_variance_is_calibrated_on_the_validation_split(tmp_path: Path, data: ImageData) -> None:
    model = train(settings(tmp_path, likelihood="mse", epochs=1), data)
    x = to_float(data.validation.batch(range(179)))
    with torch.no_grad():
        error = (model.reconstruct(x) - x).square().mean((0, 2, 3))
    torch.testing.assert_close(model.likelihood.log_variance.exp(), error, rtol=1e-4, atol=0)


def test_validation_figures_are_means_over_images(tmp_path: Path, data: ImageData) -> None:
    model = train(settings(tmp_path, name="run", likelihood="gaussian", epochs=1), data)
    x = to_float(data.validation.batch(range(179)))
    with torch.no_grad():
        output = model(x)
    (history,) = histories(tmp_path / "run")
    for name, value in {"loss": output.loss, **output.terms}.items():
        assert history[f"validation/{name}"][1] == [pytest.approx(value.item(), rel=1e-4)], name


@pytest.mark.parametrize("steps", [None, 6], ids=["whole_epochs", "within_an_epoch"])
def test_the_model_of_the_lowest_validation_loss_is_returned(
    tmp_path: Path, data: ImageData, steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says that every epoch is worse than the one before, so it is the model of the first."""
    from models.training.modules import AutoencoderModule

    def worse(self, batch, index, step=AutoencoderModule.validation_step) -> object:
        output = step(self, batch, index)
        self.validation_sums["loss"] += 100.0 * self.trainer.global_step * len(batch[0])
        return output

    first = train(settings(tmp_path, name="first", epochs=1), data)
    monkeypatch.setattr(AutoencoderModule, "validation_step", worse)
    model = train(settings(tmp_path, name="longer", epochs=2, steps=steps), data)
    (history,) = histories(tmp_path / "longer")
    assert len(history["validation/loss"][0]) == 2
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_the_learning_rate_rises_and_falls(tmp_path: Path, data: ImageData) -> None:
    train(settings(tmp_path, name="run", schedule="cosine", warmup=3, lr=1e-3), data)
    (history,) = histories(tmp_path / "run")
    expected = [1e-3 * min(1, (s + 1) / 4) * 0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]
    assert history["train/lr"][1] == pytest.approx(expected)


def test_the_weight_of_the_kl_term_rises_in_training_only(tmp_path: Path, data: ImageData) -> None:
    train(settings(tmp_path, name="run", kl_warmup=3, **SMALL_VAE | {"beta": 0.7}), data)
    (history,) = histories(tmp_path / "run")
    terms = zip(history["train/reconstruction"][1], history["train/kl"][1], strict=True)
    expected = [r + 0.7 * min(1, (s + 1) / 4) * kl for s, (r, kl) in enumerate(terms)]
    assert history["train/loss"][1] == pytest.approx(expected, rel=1e-5)
    reconstruction, kl, loss = (history[f"validation/{name}"][1] for name in ("reconstruction", "kl", "loss"))
    assert loss == pytest.approx([r + 0.7 * k for r, k in zip(reconstruction, kl, strict=True)], rel=1e-5)


def test_gradients_are_clipped(tmp_path: Path, data: ImageData) -> None:
    """To far less than the eps of Adam, so that nothing moves."""
    free, clipped, still = (
        train(settings(tmp_path, name=name, steps=1, **SMALL_VAE, **changes), data).encoder[0].weight
        for name, changes in (("free", {}), ("clipped", {"clip": 1e-13}), ("still", {"lr": 1e-12}))
    )
    torch.testing.assert_close(clipped, still, rtol=0, atol=1e-6)
    assert (free - still).abs().max() > 1e-4


def test_the_noise_of_training_differs_by_seed_process_and_batch() -> None:
    from models.training.modules import SeededModule

    def seed_of(seed: int, rank: int, number: int) -> int:
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=number))
        module = SimpleNamespace(
            config=SimpleNamespace(seed=seed), global_rank=rank, trainer=SimpleNamespace(fit_loop=loop)
        )
        SeededModule.on_train_batch_start(module, None, 0)
        return torch.initial_seed()

    assert len({seed_of(s, r, n) for s in range(3) for r in range(3) for n in range(3)}) == 27


def test_every_validation_draws_the_same_noise(tmp_path: Path, data: ImageData) -> None:
    """Weights that stay have the same loss after each epoch."""
    train(settings(tmp_path, name="run", lr=1e-12, **SMALL_VAE), data)
    (history,) = histories(tmp_path / "run")
    first, second = history["validation/loss"][1]
    assert second == pytest.approx(first, rel=1e-6)


def test_seeds_give_other_weights(tmp_path: Path, data: ImageData) -> None:
    """Not only another order of images: the weights stay as they were drawn."""
    a, b = (
        train(settings(tmp_path, name=f"{seed}", seed=seed, lr=1e-12, steps=1), data).encoder
        for seed in (1, 2)
    )
    assert not torch.allclose(a.conv.weight, b.conv.weight, atol=1e-3)


def test_patience_is_counted_in_epochs(tmp_path: Path, data: ImageData) -> None:
    """Nothing moves, so no epoch is better than the first, and two more are waited for."""
    still = {"lr": 1e-12, "kmeans_init": False, "codebook": "gradient", "dead_code_threshold": 0.0}
    train(settings(tmp_path, name="stop", patience=2, epochs=9, **still), data)
    (history,) = histories(tmp_path / "stop")
    assert len(history["validation/loss"][0]) == 3


def test_pictures_come_every_few_epochs(tmp_path: Path, data: ImageData) -> None:
    config = settings(tmp_path, name="run", pictures_every=2, epochs=3)
    train(config, data)
    assert [path.name for path in (config.folder / "reconstructions").iterdir()] == ["epoch_0002.png"]


@pytest.mark.parametrize("conditional", [True, False])
def test_priors_learn_the_training_codes_and_are_measured_on_the_others(
    tmp_path: Path, data: ImageData, conditional: bool
) -> None:
    """The logged loss is -log p(codes | class, level above) a code, of the validation split."""
    from models.codes.encode import encode
    from models.training.prior import train_prior

    tiny = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 8}
    model = VQVAE2(1, downscales=(2, 2), kmeans_init=True, **tiny).train()
    model(to_float(data.train.batch(range(256))))  # codes that differ
    store = encode(model.eval(), data, tmp_path / "codes")
    config = PriorConfig(
        name="prior",
        runs=str(tmp_path),
        codes=str(tmp_path / "codes"),
        conditional=conditional,
        width=16,
        layers=1,
        heads=2,
        lr=1e-2,
        epochs=4,
        batch_size=60,
        log_every=1,
        progress=False,
        accelerator="cpu",
    )
    priors = train_prior(config, store)
    (history,) = histories(tmp_path / "prior")
    assert len(history["train/loss"][0]) == 4 * (256 // 60)
    split = store.split("validation")
    top, bottom = split.batch(range(179))
    given = split.batch_labels(range(179)) if conditional else None
    with torch.no_grad():
        nats = {
            "nats_per_code_top": -priors[0](top, given).mean().item() / 4,
            "nats_per_code_bottom": -priors[1](bottom, given, top).mean().item() / 16,
        }
    losses = history["validation/loss"][1]
    best = losses.index(min(losses))
    for name, value in (nats | {"loss": sum(nats.values())}).items():
        assert history[f"validation/{name}"][1][best] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("model", ["vae", "vqvae", "vqvae2"])
def test_every_setting_reaches_the_model(model: str) -> None:
    """No value is the default of a constructor."""
    config = TrainConfig(
        model=model,
        hidden=6,
        residual_layers=1,
        residual_hidden=5,
        embedding_dim=7,
        codebook_size=9,
        level_codebook_sizes=(9, 5),
        downscale=2,
        downscales=(2, 2),
        codebook="gradient",
        alpha=3.0,
        beta=0.7,
        decay=0.8,
        kmeans_init=True,
        dead_code_threshold=0.3,
        accumulate=2,
        likelihood="logistic",
        variance=0.3,
        decoder="autoregressive",
        decoder_width=10,
        decoder_layers=1,
        latent_dim=11,
        channels_vae=(3, 4, 5, 6),
    )
    data = SimpleNamespace(channels=2, size=(8, 8), variance=0.06, name="made", kind=Images((8, 8), 2))
    found = build_model(config, data).config
    expected = vars(config) | {
        "in_channels": data.channels,
        "image_size": data.size,
        "channels": config.channels_vae,
        "manual_ema_update": True,
    }
    plain = build_model(TrainConfig(model=model, downscale=2, downscales=(2, 2), channels_vae=(4,)), data)
    assert plain.config["variance"] == data.variance
    assert (found.get("ndim", 2), found["data_levels"], found["scale"]) == (2, 256, 1.0), "those of images"
    no_settings = {"eps", "ndim", "relu_skip", "data_levels", "scale"}
    for name in set(found) - no_settings:
        value = tuple(found[name]) if isinstance(found[name], list) else found[name]
        assert value == expected[name], name


@pytest.mark.parametrize("kind", ["transformer", "pixelcnn", "pixelsnail"])
def test_every_setting_reaches_the_priors(kind: str) -> None:
    """No value is the default of a constructor."""
    from models.training.prior import build_priors

    config = PriorConfig(prior=kind, width=12, layers=2, heads=3, dropout=0.3, kernel_size=7, upper_blocks=2)
    description = CodeDescription(((2, 2), (4, 4)), ((8,), (8,)), ("a", "b"), "made", "", "")
    common = {"dropout": 0.3, "num_classes": 2}
    expected = {
        "transformer": {"width": 12, "layers": 2, "heads": 3},
        "pixelcnn": {"channels": 12, "layers": 2, "kernel_size": 7, "upper_blocks": 2},
        "pixelsnail": {"channels": 12, "blocks": 2, "heads": 3, "kernel_size": 7, "upper_blocks": 2},
    }[kind] | common
    for prior in build_priors(config, description):
        assert {name: prior.config[name] for name in expected} == expected
