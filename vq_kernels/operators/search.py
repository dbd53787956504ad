"""``vq_kernels::nearest_code``: the index of the nearest code of every row."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import Backend, choose
from ..devices import current_device_of
from ..rows import common_rows, shape_without_channel
from .registry import check_memory, is_plain, operator

if TYPE_CHECKING:
    from ..prepared import PreparedCodebook


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
    return _search(choose("nearest_code", backend, x, codebook), x, codebook, metric, precision, channel_dim)


def nearest_code_prepared(
    x: Tensor,
    codes: Tensor,
    prepared: PreparedCodebook,
    metric: str,
    precision: str,
    channel_dim: int,
    backend: str | None,
) -> Tensor:
    """:func:`nearest_code` with packed codes; with the codes alone, where something looks at the call."""
    if not is_plain(x):
        return nearest_code(x, codes, metric, precision, channel_dim, backend)
    check_memory(x)
    chosen = choose("nearest_code", backend, x, codes)
    with torch.no_grad():
        return _search(chosen, x, codes, metric, precision, channel_dim, prepared.packed_for(chosen.name))


def _search(
    chosen: Backend,
    x: Tensor,
    codes: Tensor,
    metric: str,
    precision: str,
    channel_dim: int,
    packed: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    (rows,) = common_rows(channel_dim, x)
    with current_device_of(x):
        indices = chosen.nearest_code(rows, codes.contiguous(), metric, precision, **packed)
    return indices.view(shape_without_channel(x, channel_dim))
