"""Settings: values that are refused, and what a resumed run may change."""

from __future__ import annotations

import re

import pytest

from models.cli import main
from models.codes.description import CodeDescription
from models.runs.config import PriorConfig, TrainConfig


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("precision", "foo", "precision is 'foo'; accepted: '32-true', 'bf16-mixed', '16-mixed'"),
        ("accelerator", "tpu", "accelerator is 'tpu'; accepted: 'auto', 'cpu', 'gpu'"),
        ("warmup", "-1", "warmup is -1; accepted: an integer of at least 0"),
        ("latent_dim", "0", "latent_dim is 0; accepted: an integer of at least 1"),
        ("hidden", "1", "hidden is 1; accepted: an integer of at least 2"),
        ("seed", "-1", "seed is -1; accepted: an integer of at least 0"),
        ("seed", str(2**32), r"seed is 4294967296; accepted: an integer below 2\*\*32"),
        ("steps", "0", "steps is 0; accepted: an integer of at least 1"),
        ("limit", "0", "limit is 0; accepted: an integer of at least 1"),
        ("epochs", "0", "epochs is 0; accepted: an integer of at least 1"),
        ("batch_size", "0", "batch_size is 0; accepted: an integer of at least 1"),
        ("clip", "-1", "clip is -1.0; accepted: a number above 0"),
        ("patience", "0", "patience is 0; accepted: an integer of at least 1"),
        ("variance", "0", "variance is 0.0; accepted: a number above 0"),
        ("devices", "0", "devices is 0; accepted: an integer of at least 1"),
        ("lr", "0", "lr is 0.0; accepted: a number above 0, up to 1e30"),
        ("lr", "inf", "lr is inf; accepted: a finite number"),
        ("lr", "1e300", r"lr is 1e\+300; accepted: a number above 0, up to 1e30"),
        ("beta", "nan", "beta is nan; accepted: a finite number"),
        ("downscales", "2,0", "downscales is 0; accepted: an integer of at least 1"),
        ("channels_vae", "", "channels_vae is ''; accepted: a whole number"),
        (
            "devices",
            "2",
            "devices is 2; accepted: 1, a single process, or start with: torchrun --nproc-per-node 2",
        ),
        ("precision", "16-mixed", "precision is '16-mixed', which needs a GPU"),
    ],
)
def test_values_that_are_refused(
    tmp_path, monkeypatch, capsys, setting: str, value: str, message: str
) -> None:
    """One line that names the setting, what it is and what it may be; the earlier run is untouched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    earlier = TrainConfig(name="a")
    earlier.folder.mkdir(parents=True)
    earlier.save(earlier.folder / "config.yaml")
    (earlier.folder / "model").mkdir()
    assert main(["train", "--name", "a", "--overwrite", "--" + setting.replace("_", "-"), value]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert sorted(path.name for path in earlier.folder.iterdir()) == ["config.yaml", "model"]


def test_a_gpu_that_is_not_there_blocks_no_name(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", "--name", "a", "--accelerator", "gpu"]) == 2
    assert "accelerator is 'gpu', but torch finds no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_a_resumed_run_may_change(tmp_path, monkeypatch, capsys) -> None:
    earlier = TrainConfig(runs=str(tmp_path))
    earlier.replace(epochs=9, steps=3, progress=False, patience=2, log_every=1).check_resumes(earlier)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--name", "a", "--resume"]) == 2
    assert "holds no run to go on with; leave --resume out" in capsys.readouterr().err
    earlier = TrainConfig(name="a")
    earlier.folder.mkdir(parents=True)
    earlier.save(earlier.folder / "config.yaml")
    for setting, value, before in (("hidden", 32, 128), ("limit", 9, None), ("downscale", 2, 4)):
        assert main(["train", "--name", "a", "--resume", f"--{setting}", str(value)]) == 2
        error = capsys.readouterr().err
        assert f"{setting} is {value}, but the run in runs/a has {before}" in error
        assert f"leave {setting} out, or choose another name" in error
    assert TrainConfig.load(earlier.folder / "config.yaml") == earlier


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--model vae", ("gaussian", 1.0)),
        ("--model vqvae", ("mse", 0.25)),
        ("--model vqvae2", ("mse", 0.25)),
        ("--config cifar10", ("mse", 0.25)),
        ("--config cifar10 --model vae", ("gaussian", 1.0)),
        ("--config cifar10 --model vae --likelihood mse --beta 0.25", ("mse", 0.25)),
        ("--config demo", ("mse", 0.25)),
        ("--config mnist", ("mse", 0.25)),
    ],
)
def test_likelihood_and_beta_are_those_of_the_model(tmp_path, monkeypatch, flags: str, expected) -> None:
    """A VAE minimises the ELBO; the stored settings show what was taken."""
    seen = []
    monkeypatch.setattr("models.training.autoencoder.train", lambda config, **options: seen.append(config))
    assert main(["train", *flags.split()]) == 0
    config = seen[0]
    assert (config.likelihood, config.beta) == expected
    config.save(tmp_path / "config.yaml")
    assert f"likelihood: {expected[0]}\n" in (tmp_path / "config.yaml").read_text()
    assert TrainConfig.load(tmp_path / "config.yaml") == config


def test_a_prior_is_conditional_where_there_are_labels() -> None:
    from models.runs.build import build_priors

    def classes(config: PriorConfig, names: tuple[str, ...]) -> int | None:
        description = CodeDescription(((4, 4),), ((8,),), names, "faces", "", "")
        return build_priors(config, description)[0].num_classes

    assert classes(PriorConfig(), ("a", "b")) == classes(PriorConfig(conditional=True), ("a", "b")) == 2
    assert classes(PriorConfig(conditional=False), ("a", "b")) is classes(PriorConfig(), ()) is None
    with pytest.raises(
        ValueError, match=r"conditional is true, but the codes of faces .* no labels; leave it"
    ):
        classes(PriorConfig(conditional=True), ())


@pytest.mark.parametrize(("flag", "expected"), [("--conditional", True), ("--no-conditional", False)])
def test_conditional_is_a_flag_without_a_value(monkeypatch, flag: str, expected: bool) -> None:
    seen = []
    monkeypatch.setattr("models.training.prior.train_prior", lambda config, **options: seen.append(config))
    assert main(["train-prior", "--codes", "x", flag]) == 0
    assert main(["train-prior", "--codes", "x"]) == 0
    assert [config.conditional for config in seen] == [expected, None]


def test_settings_of_each_level_of_a_published_pixelsnail() -> None:
    """VQ-VAE-2: attention on the upper level alone, a stack of residual blocks that reads it below."""
    from models.priors import PixelSNAIL
    from models.runs.build import build_priors

    values = {"prior": "pixelsnail", "width": 8, "layers": 1, "heads": 2, "kernel_size": 3, "res_blocks": 2}
    values |= {"res_channels": "16,4", "attention": "true,false", "out_res_blocks": [2, 0]}
    config = PriorConfig.from_mapping(values | {"upper_blocks": 5, "upper_channels": 6}, "test")
    description = CodeDescription(((4, 4), (8, 8)), ((8,), (8,)), (), "faces", "", "")
    top, bottom = build_priors(config, description)
    assert isinstance(top, PixelSNAIL)
    assert isinstance(bottom, PixelSNAIL)
    read = [
        {k: prior.config[k] for k in ("res_channels", "attention", "out_res_blocks")}
        for prior in (top, bottom)
    ]
    assert read == [
        {"res_channels": 16, "attention": True, "out_res_blocks": 2},
        {"res_channels": 4, "attention": False, "out_res_blocks": 0},
    ]
    assert (bottom.config["kernel_size"], bottom.config["res_blocks"]) == (3, 2)
    assert (bottom.config["upper_blocks"], bottom.config["upper_channels"]) == (5, 6)
    assert len(bottom.blocks) == 1
    with pytest.raises(ValueError, match=r"attention is true,true,false; accepted: one .* each of 2 levels"):
        build_priors(config.replace(attention=(True, True, False)), description)
    with pytest.raises(ValueError, match="kernel_size is 4; accepted: an odd integer of at least 3"):
        PriorConfig(kernel_size=4)
