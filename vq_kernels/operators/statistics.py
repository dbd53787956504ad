"""``vq_kernels::code_statistics``: rows per code and their sums."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import choose
from ..devices import current_device_of
from ..rows import common_rows
from ..tensor_checks import check_index_range
from .registry import operator


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of losses and sums: float32, or float64 for float64 x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake(
    x: Tensor,
    indices: Tensor,
    codebook_size: int,
    channel_dim: int,
    skip_nonfinite: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    counts = x.new_empty(codebook_size, dtype=torch.int64)
    return counts, x.new_empty((codebook_size, x.shape[channel_dim]), dtype=compute_dtype(x))


@operator(
    "code_statistics(Tensor x, Tensor indices, int codebook_size, int channel_dim, bool skip_nonfinite,"
    " str? backend) -> (Tensor, Tensor)",
    _fake,
)
def code_statistics(
    x: Tensor,
    indices: Tensor,
    codebook_size: int,
    channel_dim: int,
    skip_nonfinite: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Counts ``[K]`` and sums ``[K, D]``; see :func:`vq_kernels.code_statistics`."""
    check_index_range(indices, -1, codebook_size)
    (rows,) = common_rows(channel_dim, x)
    flat = indices.contiguous().view(rows.shape[:2])
    chosen = choose("code_statistics", backend, x)
    with current_device_of(x):
        return chosen.code_statistics(rows, flat, codebook_size, skip_nonfinite)
