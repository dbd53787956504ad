"""Every command block of README and CONTRIBUTING that needs no network runs, in the order of the page."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")
# What makes the training commands short; the page's settings count otherwise.
SHORT = {"train": ["--steps", "3", "--limit", "100"], "train-prior": ["--steps", "3"]}
PROGRAMS = ("make ", "pip ", "python ", "pytest ", "vq-models ", "torchrun ")
LOOP = ["--no-progress", "--accelerator", "cpu"]


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The lines of blocks without a language that start a program."""
    lines = [line for language, text in blocks(page) if not language for line in text.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith(PROGRAMS)]
    return [words for words in split if words]


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page: str) -> None:
    targets = [words[1] for words in commands(page) if words[0] == "make"]
    assert targets
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_models_run(page: str, tmp_path: Path, monkeypatch) -> None:
    """For a reader who has only the checkout."""
    from studies_support import CASES, SMALLEST

    from models.cli import main
    from models.studies import cifar_vae_vqvae as study

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "SETTINGS", {"small": study.SETTINGS["small"] | SMALLEST})
    monkeypatch.setattr(study, "BATCH_SIZES", CASES["cifar-vae-vqvae"][0]["BATCH_SIZES"])
    for words in commands(page):
        if words[:3] != ["python", "-m", "models"]:
            continue
        command = words[3]
        short = SHORT.get(command, [])
        loop = LOOP if command in ("train", "train-prior", "reproduce") else ["--device", "cpu"]
        limit = ["--limit", "100"] if command == "reproduce" else []
        assert main([*words[3:], *short, *loop, *limit]) == 0, words


def test_modules_of_other_commands_exist() -> None:
    from importlib.util import find_spec

    named = {words[2] for page in PAGES for words in commands(page) if words[:2] == ["python", "-m"]}
    inline = set(re.findall(r"`python -m ([\w.]+)", "".join((ROOT / page).read_text() for page in PAGES)))
    missing = [name for name in named | inline if name != "pytest" and find_spec(name) is None]
    assert missing == []


def test_python_blocks_run() -> None:
    """With the tensors that the page speaks of."""
    torch.manual_seed(0)
    scope: dict[str, object] = {
        "features": torch.randn(2, 64, 8, 8),
        "x": torch.randn(40, 8),
        "codebook": torch.randn(16, 8),
        "codebook_size": 16,
        "cluster_size": torch.ones(16),
        "embed_avg": torch.randn(16, 8),
    }
    texts = [text for page in PAGES for language, text in blocks(page) if language == "python"]
    assert len(texts) >= 2
    for text in texts:
        exec(compile(text, "README", "exec"), scope)
