"""What a newcomer sees: the help of every command, the configurations by name, what TensorBoard shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.cli import COMMANDS, main
from models.runs.config import PriorConfig, TrainConfig
from models.settings import CONFIG_FOLDER
from models.studies.catalogue import list_studies

NAMES = [module.__name__.split(".")[-1].replace("_", "-") for module in COMMANDS]


def shown(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [*NAMES, *(f"reproduce {name}" for name in list_studies())])
def test_help_has_examples_and_no_markup(command: str, capsys) -> None:
    text = shown(capsys, *command.split())
    assert f"examples:\n  python -m models {command}" in text
    assert "``" not in text
    assert ":class:" not in text
    assert shown(capsys, *command.split()).count("options:") == 1


def test_flags_stand_in_groups(capsys) -> None:
    text = shown(capsys, "train")
    places = [text.index(f"\n{group}:\n") for group in ("run and training", "data", "codebook", "model")]
    places += [text.index(flag) for flag in ("  --epochs ", "  --data ", "  --decay ", "  --downscale ")]
    groups, flags = places[:4], places[4:]
    assert sorted(places) == [place for pair in zip(groups, flags, strict=True) for place in pair]
    assert "\nprior:\n" in shown(capsys, "train-prior")
    assert "\ndata, by default those of the run:\n" in shown(capsys, "evaluate")


@pytest.mark.parametrize("file", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_need_the_checkout_or_the_hub_alone(file: Path) -> None:
    if "prior" in file.stem:
        assert PriorConfig.load(file.stem).codes == ""
        return
    config = TrainConfig.load(file.stem)
    assert config.data == "digits" or config.data.count("/") == 1
    assert not config.data.startswith((".", "/"))
    assert 1 <= config.pictures_every <= config.epochs, "a run draws reconstructions"


def test_a_configuration_takes_its_images_from_a_folder_instead(tmp_path: Path, monkeypatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("models.training.autoencoder.train", lambda config, **_: seen.append(config))
    assert main(["train", "--config", "mnist", "--data", str(tmp_path)]) == 0
    assert (seen[0].data, seen[0].codebook_size) == (str(tmp_path), 128)


def test_tensorboard_has_the_settings_of_a_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = ["train", "--runs", str(tmp_path), "--limit", "64", "--steps", "2", "--hidden", "8"]
    train += ["--downscale", "2", "--no-progress", "--accelerator", "cpu", "--pictures-every", "0"]
    assert main([*train, "--lr", "0.002"]) == 0
    seen, scalars = {}, set()
    for file in (tmp_path / "run" / "tensorboard").rglob("events.out.*"):
        events = EventAccumulator(str(file)).Reload()
        seen |= events.summary_metadata
        scalars |= set(events.Tags()["scalars"])
    hyper_parameters = seen["_hparams_/session_start_info"].plugin_data.content
    assert b"0.002" in hyper_parameters
    assert b"downscale" in hyper_parameters
    assert "best/validation_loss" in scalars
