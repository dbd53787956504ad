"""Settings that the chosen model does not have, values of another type, and files that are no settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.cli import main
from models.runs.config import PriorConfig, TrainConfig
from models.settings import read_yaml


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[TrainConfig]:
    """The settings that a training would be started with."""
    configs: list[TrainConfig] = []
    monkeypatch.chdir(tmp_path)
    for name in ("models.training.autoencoder.train", "models.training.prior.train_prior"):
        monkeypatch.setattr(name, lambda config, **options: configs.append(config))
    return configs


def refused(capsys, *command: str) -> str:
    capsys.readouterr()
    assert main(list(command)) == 2
    error: str = capsys.readouterr().err
    assert error.count("\n") == 1, "one line"
    return error


@pytest.mark.parametrize(
    ("flags", "message", "own"),
    [
        ("--model vae --codebook-size 8", "codebook_size means nothing with model vae", "latent_dim, "),
        ("--alpha 2", "alpha means nothing with codebook ema, only with gradient", "decay"),
        ("--codebook gradient --decay 0.9", "decay means nothing with codebook gradient", "alpha"),
        ("--latent-dim 4", "latent_dim means nothing with model vqvae, only with vae", "downscale"),
        ("--model vqvae2 --downscale 2", "downscale means nothing with model vqvae2", "downscales"),
        ("--model vae --hidden 8", "hidden means nothing with model vae", "channels_vae"),
        ("--config demo --model vae --decay 0.9", "decay means nothing with model vae", "kl_warmup"),
    ],
)
def test_flags_that_the_chosen_model_does_not_have(taken, capsys, flags: str, message: str, own: str) -> None:
    error = refused(capsys, "train", *flags.split())
    assert message in error
    assert own in error.partition("accepted with ")[2]
    assert taken == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--kernel-size 3",
            "kernel_size means nothing with prior transformer, only with pixelsnail or pixelcnn",
        ),
        ("--prior pixelcnn --heads 2", "heads means nothing with prior pixelcnn"),
        ("--prior pixelcnn --attention true", "attention means nothing with prior pixelcnn, only with pixel"),
    ],
)
def test_flags_that_the_chosen_prior_does_not_have(taken, capsys, flags: str, message: str) -> None:
    assert message in refused(capsys, "train-prior", "--codes", "x", *flags.split())
    assert taken == []


def test_what_applies_is_taken(taken) -> None:
    for flags in (
        "--config cifar10 --model vae --likelihood mse --beta 0.25 --name cifar10-vae",
        "--config demo --codebook gradient --alpha 2",
        "--model vqvae2 --downscales 2,2 --codebook-size 8 --decay 0.9",
        "--model vae --latent-dim 4 --channels-vae 4,4,4,4 --kl-warmup 3",
    ):
        assert main(["train", *flags.split()]) == 0
    assert [config.model for config in taken] == ["vae", "vqvae", "vqvae2", "vae"]
    assert main(["train-prior", "--codes", "x", "--config", "demo-prior"]) == 0


def test_a_file_is_held_to_the_model_that_it_names(taken, capsys, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: vae\nlatent_dim: 3\ncodebook_size: 8\n")
    assert "error: a.yaml: codebook_size means nothing with model vae" in refused(
        capsys, "train", "--config", "a.yaml"
    )
    (tmp_path / "b.yaml").write_text("codebook_size: 8\n")
    assert "b.yaml: codebook_size" in refused(capsys, "train", "--config", "b.yaml", "--model", "vae")
    assert main(["train", "--config", "b.yaml"]) == 0
    (tmp_path / "c.yaml").write_text("prior: transformer\nheads: 2\nkernel_size: 5\n")
    assert "c.yaml: kernel_size" in refused(capsys, "train-prior", "--codes", "x", "--config", "c.yaml")


def test_the_settings_of_a_run_list_those_of_all_models(taken, capsys, tmp_path: Path) -> None:
    TrainConfig(name="run", model="vae").save(tmp_path / "runs" / "run" / "config.yaml")
    stored = str(tmp_path / "runs" / "run" / "config.yaml")
    assert main(["train", "--config", stored, "--name", "again", "--model", "vqvae"]) == 0
    assert main(["train", "--resume", "--name", "run", "--epochs", "3"]) == 0
    assert "codebook_size means nothing with model vae" in refused(
        capsys, "train", "--resume", "--name", "run", "--codebook-size", "512"
    )
    PriorConfig(name="prior").save(tmp_path / "prior.yaml")
    assert main(["train-prior", "--codes", "x", "--config", "prior.yaml"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: true", "file.yaml: epochs is True; accepted: a whole number"),
        ("lr: false", "file.yaml: lr is False; accepted: a number"),
        ("data: true", "file.yaml: data is True; accepted: text"),
        ("name:", "file.yaml: name is None; accepted: text"),
        ("name: ''", "name is ''; accepted: the name of a folder"),
        ("name: '  '", "name is '  '; accepted: the name of a folder"),
        ("downscales: [2, true]", "file.yaml: downscales is True; accepted: a whole number"),
        ("kmeans_init: 1", "file.yaml: kmeans_init is 1; accepted: true or false"),
        ("data: [a, b]", "file.yaml: data is ['a', 'b']; accepted: text"),
        ("1: 2", "file.yaml: 1 is no name of a setting"),
        ("true: 2", "file.yaml: true is no name of a setting"),
        ("? [a, b]\n: 2", "file.yaml is not valid YAML"),
        ("lr: 1\nlr: 2", "file.yaml: lr is given 2 times; accepted: once"),
        (
            "a: &a [x, x]\nb: &b [*a, *a]\nlr: [*b, *b]",
            "file.yaml: b is nested; accepted: a value, or a list",
        ),
        ("lr: {a: 1}", "file.yaml: lr is nested"),
        ("lr: " + "[" * 5000, "file.yaml"),
        ("lr: {a: [" * 3000, "file.yaml"),
        ("lr: 1\n  epochs: 3", "file.yaml is not valid YAML: mapping values are not allowed here"),
        ("- lr", "file.yaml holds no settings; accepted: lines of the form"),
        ("", "file.yaml holds no settings"),
        ("lr: 1\n---\nlr: 2", "file.yaml is not valid YAML: expected a single document"),
        (b"name: \xe9t\xe9", "file.yaml is not text in UTF-8"),
        ("name: été".encode("utf-16"), "file.yaml is not text in UTF-8"),
        (b"name: a\x00b", "file.yaml is not valid YAML"),
    ],
)
def test_files_that_are_no_settings_get_one_line(taken, capsys, tmp_path: Path, text, message: str) -> None:
    (tmp_path / "file.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(capsys, "train", "--config", "file.yaml")


def test_what_yaml_and_flags_may_say(taken, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_bytes(
        "\ufeffname: 2026\nsize: 64\nlr: 1e-3\nepochs: 1e1\nkmeans_init: yes\nsteps: null\n".encode()
    )
    assert main(["train", "--config", "file.yaml"]) == 0
    (config,) = taken
    assert (config.name, config.size, config.lr, config.epochs) == ("2026", "64", 1e-3, 10)
    assert config.kmeans_init is True
    assert main(["train", "--name", "none", "--size", "none", "--steps", "none"]) == 0
    assert taken[1].folder == Path("runs/none")
    assert taken[1].size is None


def test_a_second_file_is_refused(taken, capsys) -> None:
    error = refused(capsys, "train", "--config", "demo", "--config", "mnist")
    assert "config is given twice, demo and mnist; accepted: one" in error


def test_a_resumed_run_parses_its_settings_once(monkeypatch, tmp_path: Path) -> None:
    import yaml

    from models.runs.start import check_folder, start_config

    config = TrainConfig(runs=str(tmp_path), name="run")
    config.save(config.layout.config)
    parsed: list[str] = []
    original = yaml.SafeLoader.get_single_node
    monkeypatch.setattr(
        yaml.SafeLoader, "get_single_node", lambda self: parsed.append(self.name) or original(self)
    )
    again = start_config(TrainConfig, {"runs": str(tmp_path), "name": "run"}, resume=True)
    check_folder(again, True, False)
    assert len(parsed) == 1
    values = read_yaml(config.layout.config)
    values.clear()
    assert read_yaml(config.layout.config), "what one caller does to the values is not seen by another"
