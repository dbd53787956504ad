"""``vq_kernels::nearest_code``: the index of the nearest code of every row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import choose
from ..devices import current_device_of
from ..rows import common_rows, shape_without_channel
from .registry import operator


def _fake(
    x: Tensor, codebook: Tensor, metric: str, precision: str, channel_dim: int, backend: str | None
) -> Tensor:
    return x.new_empty(shape_without_channel(x, channel_dim), dtype=torch.int64)


@operator(
    "nearest_code(Tensor x, Tensor codebook, str metric, str precision, int channel_dim, str? backend)"
    " -> Tensor",
    _fake,
)
def nearest_code(
    x: Tensor, codebook: Tensor, metric: str, precision: str, channel_dim: int, backend: str | None
) -> Tensor:
    """Indices of x's shape without D; see :func:`vq_kernels.nearest_code`."""
    chosen = choose("nearest_code", backend, x, codebook)
    (rows,) = common_rows(channel_dim, x)
    with current_device_of(x):
        indices = chosen.nearest_code(rows, codebook.contiguous(), metric, precision)
    return indices.view(shape_without_channel(x, channel_dim))
