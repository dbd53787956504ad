"""Lloyd's k-means on the device, over the rows of all ranks, without distances of size N x K."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import WORLD, ProcessGroup, reduce_statistics
from ..functional import code_statistics, nearest_code
from .draw import draw_rows


class Clusters(NamedTuple):
    means: Tensor  # [K, D] float32
    counts: Tensor  # [K] float32: rows of each mean, over all ranks
    total: Tensor  # [] int64: rows that took part, over all ranks


@torch.no_grad()
def kmeans(
    x: Tensor,
    mask: Tensor | None,
    codebook_size: int,
    *,
    iterations: int,
    metric: str,
    precision: str,
    channel_dim: int,
    backend: str | None,
    synchronized: bool,
    group: ProcessGroup = WORLD,
) -> Clusters:
    """Cluster the unmasked finite rows of x (``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``).

    Starts from random rows (each once if there are enough) and keeps a mean that loses all its rows, or whose
    sum of rows float32 cannot hold.
    With ``metric="cosine"`` (spherical k-means) the means have unit length.
    """
    # The extremes of each row, which NaN and infinities reach: torch.isfinite would make three copies of x.
    finite = x.amax(channel_dim).isfinite() & x.amin(channel_dim).isfinite()  # [...]
    valid = finite if mask is None else finite & mask
    drawn = draw_rows(
        x, valid, codebook_size, channel_dim=channel_dim, synchronized=synchronized, group=group, repeat=True
    )
    means = drawn.rows  # [K, D]
    if metric == "cosine":
        means = F.normalize(means, dim=-1, eps=1e-6)
    counts = means.new_zeros(codebook_size)  # [K]
    for _ in range(iterations):
        means = means.contiguous()
        nearest = nearest_code(
            x, means, metric=metric, precision=precision, channel_dim=channel_dim, backend=backend
        )
        indices = torch.where(valid, nearest, -1)  # [...]
        counts, sums = code_statistics(x, indices, codebook_size, channel_dim=channel_dim, backend=backend)
        if synchronized:
            counts, sums = reduce_statistics(counts, sums, group)
        counts, sums = counts.float(), sums.float()
        updated = sums / counts.clamp(min=1)[:, None]  # [K, D]
        if metric == "cosine":
            updated = F.normalize(updated, dim=-1, eps=1e-6)
        # A sum that float32 cannot hold leaves its mean where it is, as no rows do.
        moves = (counts > 0) & updated.isfinite().all(1)  # [K]
        means = torch.where(moves[:, None], updated, means)
    return Clusters(means, counts, drawn.total)
