"""How the pytest-benchmark comparisons time a call: rounds by its length, so that none takes long."""

from __future__ import annotations

import time
from typing import Any

import torch

from .measure import Call


def time_call(benchmark: Any, call: Call, device: str, *, seconds: float = 0.5) -> None:
    """Three to fifty rounds of about ``seconds`` together, after one warm-up."""

    def finished() -> object:
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    finished()
    start = time.perf_counter()
    finished()
    once = time.perf_counter() - start
    rounds = max(3, min(50, round(seconds / max(once, 1e-6))))
    iterations = max(1, min(100, round(0.002 / max(once, 1e-6))))
    benchmark.pedantic(finished, rounds=rounds, iterations=iterations, warmup_rounds=1)
