"""One step of the exponential moving averages and of the codebook that follows them."""

from __future__ import annotations

import torch
from torch import Tensor

# Averages below this length are about to lose their direction to float32's subnormal numbers.
_SHORTEST = 2.0**-100


def ema_update_(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    normalize: bool,
) -> None:
    changed = counts.sum() > 0  # []
    n = cluster_size.lerp(counts.to(cluster_size.dtype), 1 - decay)  # [K]
    m = embed_avg.lerp(sums.to(embed_avg.dtype), 1 - decay)  # [K, D]
    if normalize:
        length = m.double().norm(dim=1, keepdim=True)  # [K, 1], float64: squares of small averages are 0
        codes = torch.where(length >= _SHORTEST, m / length, codebook)  # [K, D]
        fits = m.isfinite().all(1)  # [K]
    else:
        total = n.sum()  # []
        smoothed = (n + eps) / (total + n.shape[0] * eps) * total  # [K]
        codes = m / smoothed[:, None]  # [K, D]
        fits = codes.isfinite().all(1)  # [K]
    # A sum that float32 cannot hold must not spoil a code for good.
    moves = changed & (fits | ~embed_avg.isfinite().all(1))  # [K]
    cluster_size.copy_(torch.where(moves, n, cluster_size))
    embed_avg.copy_(torch.where(moves[:, None], m, embed_avg))
    codebook.copy_(torch.where(moves[:, None], codes.to(codebook.dtype), codebook))
