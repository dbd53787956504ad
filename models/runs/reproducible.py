"""Equal runs from equal seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_run(seed: int) -> None:
    """Seed Python, NumPy and torch, and settle what torch otherwise decides in a race.

    On x86 the first call of an elementwise function by several threads at once can return one thread's
    share at about 12 bits (pytorch/pytorch#188792); a first call on one element avoids that.
    """
    from lightning.pytorch import seed_everything

    seed_everything(seed, verbose=False)
    warm_up_elementwise()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic_algorithms


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Inside the block torch takes deterministic algorithms only, if ``enabled``.

    RuntimeError from torch where an operation has none.
    """
    memory: Any = torch.utils.deterministic
    mode, fill = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    try:
        if enabled:
            torch.use_deterministic_algorithms(True)
            memory.fill_uninitialized_memory = False  # kernels write all that they return
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill


def warm_up_elementwise() -> None:
    """Call the vectorised elementwise functions once in one thread, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in ("sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos"):
            getattr(torch, name)(one)
