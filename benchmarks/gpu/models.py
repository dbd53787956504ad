"""The models on a GPU, for ``make gpu-check``: the command line from data to samples, twice."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np

import vq_kernels as vq

QUICK = ("--no-progress", "--epochs", "3", "--overwrite")


def from_data_to_samples(backend: str, device: str) -> str:
    """Equal seeds give equal weights and samples, and the CPU finds the same quality as the device."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_run(backend, device, Path(folder), name) for name in ("first", "second"))
        on_cpu = _evaluate(Path(folder), "first", "cpu")
    assert first["weights"] == second["weights"], "two trainings of one seed differ"
    assert first["codes"] == second["codes"], "two samplings of one seed differ"
    on_device = first["mse"]
    assert isinstance(on_device, float)
    assert on_cpu < 0.06, f"MSE {on_cpu:.4f} after three epochs, of data of variance 0.141"
    assert abs(on_device - on_cpu) < 1e-2 * on_cpu, (
        f"MSE {on_device:.6f} on {device}, {on_cpu:.6f} on the CPU"
    )
    return f"two runs equal, MSE {on_device:.4f} on {device} and {on_cpu:.4f} on the CPU"


def _run(backend: str, device: str, folder: Path, name: str) -> dict[str, object]:
    """Train, encode, train a prior, sample and evaluate on ``device``; what came out."""
    accelerator = "cpu" if device == "cpu" else "gpu"
    at = ("--runs", str(folder), "--accelerator", accelerator, *QUICK)
    run, prior = folder / name, folder / f"{name}-prior"
    with vq.use_backend(backend):
        _call("train", "--config", "demo", "--name", name, *at)
        _call("encode", str(run), "--device", device)
        _call("train-prior", "--config", "demo-prior", "--name", prior.name, "--codes", f"{run}/codes", *at)
        _call("sample", str(prior), "--device", device, "--count", "2", "--top-k", "8")
        mse = _evaluate(folder, name, device)
    with np.load(prior / "samples" / "codes.npz") as saved:
        codes = saved["level0"].tolist()
    weights = [(path / "model.safetensors").read_bytes() for path in (run / "model", prior / "level0")]
    return {"weights": weights, "codes": codes, "mse": mse}


def _evaluate(folder: Path, name: str, device: str) -> float:
    _call("evaluate", f"{folder}/{name}", "--prior", f"{folder}/{name}-prior", "--device", device)
    return float(json.loads((folder / name / "evaluation-test.json").read_text())["mse"])


def _call(*arguments: str) -> None:
    """One command; AssertionError with what it said if it failed."""
    from models.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(arguments)
    assert status == 0, f"{' '.join(arguments)}: {said.getvalue()[-500:]}"
