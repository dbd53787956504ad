"""Runs that version 0.1.0 wrote are opened, evaluated, resumed and sampled with the numbers of then.

``data_0_1_0/runs`` holds what ``train``, ``encode`` and ``train-prior`` of that version left (a VQ-VAE that
stopped in step 243, inside an epoch; without pictures and TensorBoard's files), ``expected.json`` what
``evaluate``, ``train --resume`` and sampling then gave.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models import load_pretrained
from models.cli import main
from models.codes.sample import sample_codes
from models.codes.store import CodeStore
from models.runs.history import read_history
from models.settings import read_yaml

STORED = Path(__file__).parents[1] / "data_0_1_0"
EXPECTED: dict[str, Any] = json.loads((STORED / "expected.json").read_text())
# Another machine's convolutions round differently; another model's figures differ in the first digits.
CLOSE = {"rel": 1e-4, "abs": 1e-6}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # its settings say that it lies in ./runs
    return Path(shutil.copytree(STORED / "runs", tmp_path / "runs")).relative_to(tmp_path)


def evaluated(run: Path, *flags: str) -> dict[str, float]:
    assert main(["evaluate", str(run), "--device", "cpu", *flags]) == 0
    figures = json.loads((run / "evaluation-test.json").read_text())
    since = ("of", "rfid", "mean_psnr", "inner_ssim", "nats_per_code")  # no numbers, or not measured then
    return {name: value for name, value in figures.items() if name not in since}


@pytest.mark.parametrize("name", ["vqvae", "vqvae2", "vae"])
def test_figures(runs: Path, name: str) -> None:
    flags = ["--prior", str(runs / "prior")] if name == "vqvae" else []
    assert evaluated(runs / name, *flags) == pytest.approx(EXPECTED[name], **CLOSE)


def test_an_interrupted_run_goes_on(runs: Path) -> None:
    assert main(["train", "--name", "vqvae", "--resume", "--steps", "none"]) == 0
    steps, losses = read_history(runs / "vqvae")["validation/loss"]
    assert steps[-2:] == [247, 255]
    assert losses[-2:] == pytest.approx(EXPECTED["vqvae resumed losses"]["validation/loss"], **CLOSE)
    assert evaluated(runs / "vqvae") == pytest.approx(EXPECTED["vqvae resumed"], **CLOSE)


def test_settings_that_changed_nothing_then_do_not_lock_a_run(runs: Path, capsys) -> None:
    """Flags refuse a subset of data without any and a cache of negative size now; seeds may be below 0."""
    stored = runs / "vqvae" / "config.yaml"
    values = read_yaml(stored) | {"subset": "full", "cache_gb": -1.0, "split_seed": -1}
    stored.write_text(json.dumps(values))
    assert {"mse", "psnr"} <= set(evaluated(runs / "vqvae"))
    assert main(["train", "--name", "vqvae", "--resume", "--steps", "245"]) == 0
    assert main(["evaluate", str(runs / "vqvae"), "--subset", "full"]) == 2
    assert "subset is full, which is not that of the run" in capsys.readouterr().err


def test_codes_are_those_that_the_model_gives_and_stay_the_same(runs: Path) -> None:
    folder = runs / "vqvae" / "codes"
    description = (folder / "codes.json").read_bytes()
    before = CodeStore(folder).split("train").batch(range(64))[0]
    assert main(["encode", str(runs / "vqvae"), "--device", "cpu"]) == 0, "they count as those of the model"
    assert (folder / "codes.json").read_bytes() == description
    assert main(["encode", str(runs / "vqvae"), "--device", "cpu", "--overwrite"]) == 0
    values = json.loads((folder / "codes.json").read_text())
    assert len(values["settings"].pop("digest")) == 64, (
        "of images and labels, which version 0.1.0 did not store"
    )
    assert values == json.loads(description)
    assert torch.equal(CodeStore(folder).split("train").batch(range(64))[0], before)


def test_samples_of_the_prior(runs: Path) -> None:
    prior = load_pretrained(runs / "prior" / "level0")
    codes = sample_codes([prior], [(4, 4)], torch.arange(10), generator=torch.Generator().manual_seed(0))
    assert codes[0].flatten(1).tolist() == EXPECTED["prior samples, seed 0"]
    assert main(["sample", str(runs / "prior"), "--device", "cpu", "--count", "1"]) == 0
