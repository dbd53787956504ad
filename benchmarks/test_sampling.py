"""Sampling from priors with their caches against running the whole network again for every code."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from models.priors import PixelCNN, PixelSNAIL, TransformerPrior

SIDE = 32
AT_LEAST = 20.0  # times faster, asked for at 32 x 32
PRIORS: dict[str, Any] = {
    "pixelcnn": lambda: PixelCNN(512, 64, layers=6),
    "pixelsnail": lambda: PixelSNAIL(512, 64, blocks=2, heads=4),
    "transformer": lambda: TransformerPrior(512, 64, shape=(SIDE, SIDE), layers=4, heads=4),
}


def seconds_of_a_pass(prior: Any) -> float:
    """One run of the network over a whole map; sampling without a cache takes one for each code."""
    codes = torch.randint(0, 512, (1, SIDE, SIDE))
    times = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            prior(codes)
            times.append(time.perf_counter() - start)
    return sorted(times[1:])[1]


@pytest.mark.parametrize("name", PRIORS)
def test_cached_sampling(name: str, benchmark: Any) -> None:
    prior = PRIORS[name]().eval()
    again = SIDE * SIDE * seconds_of_a_pass(prior)
    benchmark.pedantic(prior.sample, args=((1, SIDE, SIDE),), rounds=3, warmup_rounds=1)
    ratio = again / benchmark.stats.stats.median
    benchmark.extra_info["times faster than without a cache"] = ratio
    assert ratio >= AT_LEAST
