"""What ``--dry-run`` says against what the run then takes, and that it leaves nothing behind."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from training_support import settings, train

from models.cli import main
from models.data import DataConfig, load_data
from models.training import rehearsal
from models.training.autoencoder import plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 30, "hidden": 32, "batch_size": 32},
        {"epochs": 15, "model": "vae", "accumulate": 2, "batch_size": 16, "pictures_every": 1},
    ],
    ids=["vqvae", "vae_with_pictures"],
)
def test_the_run_takes_the_time_and_room_that_were_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    """In processor time: other work on the machine counts less."""
    monkeypatch.setattr(rehearsal, "_now", time.process_time)
    data = load_data(DataConfig(data="digits"))
    ratios = []
    for attempt in range(4):  # what is left of it may come between the two
        config = settings(tmp_path, name=f"run{attempt}", limit=None, **{"log_every": 10, **changes})
        planned = plan(config, data)
        start = time.process_time()
        train(config, data)
        ratios.append((time.process_time() - start) / planned.seconds)
        if 0.8 < ratios[-1] < 1.25:
            break
    else:
        pytest.fail(f"the runs took {ratios} of what was said")
    files = sum(path.stat().st_size for path in config.folder.rglob("*") if path.is_file())
    assert planned.disk == pytest.approx(files, rel=0.25)


def test_a_dry_run_counts_and_leaves_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--hidden", "8", "--residual-hidden", "4", "--embedding-dim", "4", "--codebook-size", "16"]
    flags += [
        "--downscale",
        "2",
        "--limit",
        "100",
        "--batch-size",
        "10",
        "--accumulate",
        "4",
        "--epochs",
        "3",
    ]
    command = ["train", *flags, "--accelerator", "cpu", "--no-progress"]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "100 train, 100 validation, 100 test images" in said
    assert "steps       9, 3 validations" in said
    assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    from models import load_pretrained

    parameters = sum(value.numel() for value in load_pretrained("runs/run/model").parameters())
    assert f"parameters  {parameters:,}\n" in said
    assert re.search(r"memory +[\d,]+ MiB at most\ndisk +[\d.]+ MiB\ntime +\d+ s", said)
    assert main(["encode", "runs/run", "--device", "cpu"]) == 0
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    prior = ["train-prior", "--codes", "runs/run/codes", "--width", "8", "--layers", "1", "--heads", "2"]
    assert main([*prior, "--epochs", "2", "--batch-size", "50", "--accelerator", "cpu", "--dry-run"]) == 0
    assert "steps       4, 2 validations" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert main([*prior, "--batch-size", "500", "--dry-run"]) == 2, "what training refuses"
