"""What a run was made with: each start of it, however it ended."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_support import write_run

from models import load_data
from models.cli import main
from models.runs import machine
from models.runs.config import TrainConfig
from models.runs.data import store_data
from models.runs.layout import RunLayout
from models.runs.machine import describe_machine, recorded


def test_every_start_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.accumulate((1000.0, 12.34, 1.0, 0.06))
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    file = tmp_path / "a" / "made.json"
    with recorded(file):
        pass
    with pytest.raises(FloatingPointError), recorded(file):
        raise FloatingPointError("diverged")
    first, second = json.loads(file.read_text())["attempts"]
    assert first["began"] <= second["began"]
    assert first["began"].endswith("+00:00")
    assert (first["seconds"], second["seconds"]) == (12.3, 0.1)
    for name, value in describe_machine().items():
        assert first[name] == second[name] == value


def test_the_commit_is_that_of_the_checkout() -> None:
    """In a checkout forty hexadecimal digits; elsewhere none."""
    commit = describe_machine()["commit"]
    is_checkout = (Path(__file__).parents[3] / ".git").exists()
    assert (commit is not None) == is_checkout
    assert commit is None or (len(commit) == 40 and int(commit, 16) >= 0)


def test_a_damaged_record_is_named(tmp_path: Path, capsys) -> None:
    file = write_run(tmp_path / "r", limit=60) / "made.json"
    for content in ('{"attempts": 3}', '{"attempts": [3]}'):
        file.write_text(content)
        with (
            pytest.raises(ValueError, match=r"made.json is damaged: attempts is .*3.*; remove it"),
            recorded(file),
        ):
            pass
        assert main(["report", str(tmp_path / "r"), "--out", str(tmp_path / "r.html")]) == 2
        assert f"{file} is damaged: attempts is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "splits is None"),
        ({"splits": {"train": 3}}, "splits is {'train': 3}"),
        ({"variance": "x"}, "variance is 'x'"),
        ({"settings": 3}, "settings is 3"),
        ({"settings": {"kind": "audio"}}, "settings is {'kind': 'audio'}; accepted: those of sounds"),
        ({"settings": {"size": "x"}}, "size is 'x'; accepted: a number such as 64"),
    ],
)
def test_a_damaged_record_of_the_data_is_named(tmp_path: Path, capsys, change, message: str) -> None:
    run = write_run(tmp_path / "r", limit=60)
    layout = RunLayout(run)
    store_data(layout, load_data(TrainConfig.load(layout.config), stream=True))
    whole = {"attempts": 3} if change is None else json.loads(layout.data.read_text()) | change
    layout.data.write_text(json.dumps(whole))
    for command in ("evaluate", "reconstruct"):
        assert main([command, str(run), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {layout.data} is damaged: {message}")
        assert error.endswith("train again (--overwrite)\n")
