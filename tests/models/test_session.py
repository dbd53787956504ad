"""The page on runs: its shell session, with a run that is killed, and its example in Python."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import load_pretrained
from models.runs.history import read_history

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runs.md").read_text()
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def kill_when_saved(command: str, folder: Path, run: Path) -> None:
    """Start ``command`` and kill it as soon as it has saved its first checkpoint."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not (run / "checkpoints" / "best.ckpt").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was over too soon"


@pytest.mark.slow
def test_the_session(tmp_path: Path) -> None:
    text = block("bash").replace("python -m", f"{sys.executable} -m")
    lines = re.findall(r"(?:cat .*?^END$)|[^\n]+", text, re.MULTILINE | re.DOTALL)
    said = ""
    for line in lines:
        if line.startswith("timeout -s KILL"):
            kill_when_saved(line.split(maxsplit=4)[4], tmp_path, tmp_path / "runs" / "long")
            assert not (tmp_path / "runs" / "long" / "model").exists()
            continue
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
        said += done.stdout + done.stderr
    assert "steps       360, 60 validations" in said
    assert "runs/long is not finished: its best checkpoint so far is taken" in said
    assert load_pretrained(tmp_path / "exported").config["hidden"] == 16
    steps, _ = read_history(tmp_path / "runs" / "long")["validation/loss"]
    assert len(steps) == 60
    assert (tmp_path / "runs" / "study" / "sweep.png").is_file()
    assert "| lr | 0.0003 | 0.0001 |" in (tmp_path / "comparison" / "settings.md").read_text()


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python"), {})
    assert (tmp_path / "runs" / "own" / "model" / "model.safetensors").is_file()
