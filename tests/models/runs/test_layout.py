"""The names in a run's folder, and how often its settings are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from run_support import write_prior, write_run

from models.cli import main
from models.runs.config import TrainConfig
from models.runs.layout import RunLayout
from models.runs.open import open_priors, open_run, prior_levels


def test_levels_and_pictures_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    for name in ("level10", "level2", "level0", "levels.txt", "level"):
        (tmp_path / name).mkdir()
    assert layout.levels == [layout.level(number) for number in (0, 2, 10)]
    layout.reconstructions.mkdir()
    for name in ("epoch_0010.png", "epoch_10000.png", "epoch_0002.png", "epoch_last.png"):
        (layout.reconstructions / name).touch()
    assert layout.epoch_pictures == {epoch: layout.epoch_picture(epoch) for epoch in (2, 10, 10_000)}
    assert list(layout.epoch_pictures) == [2, 10, 10_000]


def test_a_run_is_finished_when_its_figure_is_drawn(tmp_path: Path) -> None:
    layout = TrainConfig(runs=str(tmp_path), name="a").layout
    layout.model.mkdir(parents=True)
    assert layout.outputs("train") == [layout.model]
    assert layout.outputs("train-prior") == []
    assert not layout.is_finished([layout.model])
    (layout.model / "model.safetensors").touch()
    assert layout.is_finished([layout.model]), "with no checkpoint to go on from"
    layout.checkpoints.mkdir()
    layout.last.touch()
    assert not layout.is_finished([layout.model]), "an exported checkpoint"
    layout.curves.touch()
    assert layout.is_finished([layout.model])
    assert not layout.is_finished([layout.level(0)])


def test_a_run_opens_without_a_command_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", limit=60)
    model, data = open_run(run)
    assert len(data.train) == 60
    assert model.total_downscale == 2
    prior = write_prior(tmp_path / "prior", run)
    assert [level.codebook_size for level in open_priors(prior)] == [16]
    with pytest.raises(FileNotFoundError, match=r"nowhere/config.yaml does not exist; give the folder of a"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no priors"):
        prior_levels(run)


@pytest.mark.parametrize("command", ["evaluate", "encode", "reconstruct"])
def test_a_command_reads_the_settings_of_a_run_once(tmp_path: Path, monkeypatch, command: str) -> None:
    run = write_run(tmp_path / "run", limit=60)
    parsed: list[object] = []
    original = yaml.SafeLoader.get_single_node
    monkeypatch.setattr(
        yaml.SafeLoader, "get_single_node", lambda self: parsed.append(self) or original(self)
    )
    assert main([command, str(run), "--limit", "50", "--out", str(tmp_path / "out")]) == 0
    assert len(parsed) == 1
