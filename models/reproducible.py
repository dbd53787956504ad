"""Equal runs from equal seeds."""

from __future__ import annotations

import torch


def start_reproducibly(seed: int) -> None:
    """Seed Python, NumPy and torch, and settle what torch otherwise decides in a race.

    On x86 the first call of an elementwise function by several threads at once can return one thread's
    share at about 12 bits (pytorch/pytorch#188792); a first call on one element avoids that.
    """
    from lightning.pytorch import seed_everything

    seed_everything(seed, verbose=False)
    settle_first_calls()


def settle_first_calls() -> None:
    """Call the vectorised elementwise functions once in one thread, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in ("sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos"):
            getattr(torch, name)(one)
