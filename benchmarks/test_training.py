"""A training step as `train` does it against plain torch, same sizes; losses are compared before timing."""

from __future__ import annotations

from typing import Any

import pytest

from models.runs.device import has_bfloat16

from .pytest_timing import time_call
from .training import PLAIN, WAYS, Way, autoencoder_step, check_step, prior_step


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.large) if "compiled" in n else n for n in WAYS]
)
def test_autoencoder_step(benchmark: Any, name: str, device: str) -> None:
    way = WAYS[name]
    if way.bfloat16 and device == "cpu" and not has_bfloat16():
        pytest.skip("this processor has no bfloat16 instructions")
    step = autoencoder_step(way, device)
    check_step(step, autoencoder_step(PLAIN, device), 2e-2 if way.bfloat16 else 1e-3)
    benchmark.group = "VQVAE, 32 images of 32 x 32: training step"
    time_call(benchmark, step, device, seconds=2.0)


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["without dropout", "dropout 0.2"])
def test_prior_step(benchmark: Any, dropout: float, device: str) -> None:
    step = prior_step(Way(), device, dropout)
    if not dropout:
        check_step(step, prior_step(PLAIN, device, dropout), 1e-3)
    benchmark.group = "Transformer prior, 64 maps of 16 x 16 under 8 x 8: training step"
    time_call(benchmark, step, device, seconds=2.0)
