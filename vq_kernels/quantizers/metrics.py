"""How well a codebook is used, from the number of rows per code."""

from __future__ import annotations

import torch
from torch import Tensor


def perplexity(counts: Tensor) -> Tensor:
    """``exp(-sum_k p_k log(p_k + 1e-10))`` of counts ``[..., K]``: a float32 scalar, the mean over ``...``.

    Between 1 (one code takes all rows) and K (all codes alike); 1 if nothing was counted.
    """
    counts = counts.float()
    p = counts / counts.sum(-1, keepdim=True).clamp(min=1)  # [..., K]
    return torch.exp(-(p * torch.log(p + 1e-10)).sum(-1)).mean()


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that took at least one row, of counts ``[..., K]``: a float32 scalar in [0, 1]."""
    return (counts > 0).float().mean()
