"""Rows and outputs for the tests of the CUDA kernels on the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
schedules = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])


def rows(b: int, m: int, d: int, dtype: torch.dtype, channel_first: bool = False) -> Tensor:
    x = torch.randn(b, d, m) if channel_first else torch.randn(b, m, d)
    return (x.transpose(1, 2) if channel_first else x).to(dtype)


def surrounded(b: int, m: int, d: int, dtype: torch.dtype, channel_first: bool) -> tuple[Tensor, Tensor]:
    """An output view of NaN in the middle of a larger tensor of ones, and that tensor."""
    room = (
        torch.ones(b + 2, d + 2, m + 2, dtype=dtype)
        if channel_first
        else torch.ones(b + 2, m + 2, d + 2, dtype=dtype)
    )
    view = room[1:-1, 1:-1, 1:-1].fill_(torch.nan)
    return (view.transpose(1, 2) if channel_first else view), room
