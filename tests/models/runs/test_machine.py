"""What a run was made with: each start of it, however it ended."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.runs import machine
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
