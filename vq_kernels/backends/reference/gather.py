"""The codes that indices name."""

from __future__ import annotations

from torch import Tensor


def gather_codes(codebook: Tensor, indices: Tensor, out: Tensor) -> None:
    out.copy_(codebook[indices])
