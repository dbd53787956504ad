"""What ``bench.py`` measures on a GPU, and the ratios to reach."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..compare import LAYER_PEER
from ..report import Row
from ..work import Case
from .target import Target


class Problems(NamedTuple):
    """What is measured; searches in bfloat16 begin with ``fast``, those in float32 with ``exact``."""

    layers: tuple[tuple[str, Case], ...]
    searches: tuple[Case, ...]
    equal_codes: Case


_GRID = [Case(2**26 // d, d, k) for k in (8192, 512, 20_000) for d in (64, 128, 256)]
_LAYER = Case(2**20, 64, 512)
PROBLEMS = Problems(
    layers=(
        ("step", _LAYER),
        ("forward", _LAYER),
        ("step", Case(2**20, 64, 512, dtype=torch.bfloat16)),
        ("forward", Case(2**20, 64, 512, dtype=torch.bfloat16)),
    ),
    searches=(
        *(Case(c.n, c.d, c.k, dtype=dtype) for c in _GRID for dtype in (torch.float32, torch.bfloat16)),
        Case(2**20, 64, 8192, "trained"),
        Case(2**20, 8, 128),
    ),
    equal_codes=Case(2**20, 64, 8192),
)
TINY = Problems(layers=(("step", Case(64, 8, 16)),), searches=(Case(64, 8, 16),), equal_codes=Case(64, 8, 18))


def problems_of(target: Target) -> Problems:
    """What is measured on a target."""
    return target.choose(PROBLEMS, TINY)


TRITON_PEERS = ("flash-kmeans", "flashlib triton")


def targets(work: str, case: Case) -> dict[str, float]:
    """The ratios to reach on an H200, by contender; shown on every GPU."""
    if work == "step":
        return {LAYER_PEER: 10.0}
    if case.dtype == torch.float32:
        return {"chunked matmul": 4.0, "vq_kernels high": 0.67}  # 1 / 1.5
    return dict.fromkeys(TRITON_PEERS, 1.3)


def units_of(row: Row) -> tuple[str, ...]:
    """The arithmetic units whose roof a row is held against."""
    low = row.case.dtype != torch.float32
    if row.work != "search" or "exact" in row.contender or "high" in row.contender:
        return ("bfloat16",) if low else ("float32", "bfloat16 x3")
    if row.is_ours or not low:
        return ("bfloat16",) if low else ("tf32", "bfloat16")
    return ("bfloat16",)
