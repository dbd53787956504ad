"""Runs that are killed again and again, at random moments, end exactly where an undisturbed run ends."""

from __future__ import annotations

from pathlib import Path

import preloaded
import pytest
import torch
from training_support import histories

ACCUMULATING = {
    "model": "vae", "likelihood": "gaussian", "kl_warmup": 6, "schedule": "cosine",
    "batch_size": 16, "accumulate": 4, "epochs": 8, "checkpoint_every": 2,
}  # fmt: skip
STOPPING = {"batch_size": 16, "epochs": 20, "steps": 97, "checkpoint_every": 5, "patience": 2}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("train", {"epochs": 12, "checkpoint_every": 1}),
        pytest.param("train", ACCUMULATING, marks=pytest.mark.slow),
        pytest.param("train", STOPPING, marks=pytest.mark.slow),
        ("train-prior", {"epochs": 12, "steps": 35, "checkpoint_every": 3}),
    ],
    ids=["vqvae", "vae_accumulating", "steps_and_early_stopping", "prior"],
)
def test_random_kills(tmp_path: Path, kind: str, changes: dict[str, object]) -> None:
    root = Path(__file__).parents[3]
    script = root / "tests" / "models" / "kill_support.py"
    arguments = [str(script), str(tmp_path), kind, repr(changes), "5", "0"]
    done = preloaded.run(arguments, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-2]) >= 1, "the run was over too soon to be killed"
    first, second = histories(tmp_path / "killed", tmp_path / "whole")
    assert first == second
    best = [tmp_path / name / "checkpoints" / "best.ckpt" for name in ("killed", "whole")]
    killed, whole = (torch.load(file, weights_only=True) for file in best)
    assert killed["global_step"] == whole["global_step"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, killed["state_dict"][name]), name
