"""Which loggers write what, and that an optional one is asked for only where it is."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from training_support import histories, settings, train

from models.cli import main
from models.data import DataConfig, load_data
from models.runs.config import TrainConfig
from models.training import logs


def test_the_chosen_loggers_and_no_others(tmp_path: Path, monkeypatch) -> None:
    data = load_data(DataConfig(limit=64))
    train(settings(tmp_path, name="csv", limit=64, epochs=1, logger=("csv",)), data)
    assert not (tmp_path / "csv" / "tensorboard").exists()
    asked: list[dict[str, Any]] = []

    class Wandb(CSVLogger):
        """Takes what Lightning's takes and writes a table in its place."""

        def __init__(self, **options: Any) -> None:
            asked.append(options)
            super().__init__(options["save_dir"], name="wandb", version=0)

    monkeypatch.setattr(logs, "WandbLogger", Wandb)
    monkeypatch.setattr(logs, "find_spec", lambda name: object())
    train(settings(tmp_path, name="all", limit=64, epochs=1, logger=("csv", "tensorboard", "wandb")), data)
    assert (asked[0]["offline"], asked[0]["name"], asked[0]["project"]) == (True, "all", tmp_path.name)
    assert (tmp_path / "all" / "tensorboard").is_dir()
    assert (tmp_path / "all" / "wandb" / "version_0" / "metrics.csv").is_file()
    first, second = histories(tmp_path / "csv", tmp_path / "all")
    assert first == second


def test_a_missing_package_and_other_words_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for value, message in (
        ("csv,wandb", "logger wandb needs the package wandb, which is not installed; pip install wandb"),
        ("tensorboard", "logger is tensorboard; accepted: csv, from which figures are drawn, and others"),
        ("csv,mlflow", "logger is 'mlflow'; accepted: 'csv', 'tensorboard', 'wandb'"),
    ):
        assert main(["train", "--logger", value]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert TrainConfig().logger == ("csv", "tensorboard")


def test_a_run_that_has_ended_leaves_no_thread(tmp_path: Path) -> None:
    """Or a sweep had one more for every case; what TensorBoard shows of the run is all in its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tqdm import TMonitor

    data = load_data(DataConfig(limit=64))
    before = set(threading.enumerate())
    train(settings(tmp_path, name="run", limit=64, epochs=1), data)
    left = set(threading.enumerate()) - before
    assert [thread for thread in left if not isinstance(thread, TMonitor)] == [], "but the one of all bars"
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "version_0")).Reload()
    assert "best/validation_loss" in events.Tags()["scalars"]
