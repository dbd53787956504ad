"""One canonical form for every layout: a tensor of vectors as a strided ``[B, M, D]`` view of rows.

Channel-last ``[..., D]`` and channel-first ``[B, D, *S]`` tensors, slices and expanded tensors all
become such a view without a copy as long as their leading dimensions collapse to at most two; the
few that do not (say, a transposed 5-D slice) are copied once.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


def shape_without_channel(x: Tensor, channel_dim: int) -> list[int]:
    """x's shape without the dimension of its channels: the shape of its rows' indices."""
    shape = list(x.shape)
    shape.pop(channel_dim)
    return shape


class _Collapsed(NamedTuple):
    levels: list[tuple[int, int]]  # (size, stride) of the leading dimensions that are left
    channel_stride: int
    rows: int
    dim: int


def _collapse(t: Tensor, channel_dim: int) -> _Collapsed:
    shape, strides = list(t.shape), list(t.stride())
    dim, channel_stride = shape.pop(channel_dim), strides.pop(channel_dim)
    levels: list[tuple[int, int]] = []
    rows = 1
    for size, stride in zip(shape, strides, strict=True):
        rows *= size
        if size == 1:
            continue
        if levels and levels[-1][1] == stride * size:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    return _Collapsed(levels, channel_stride, rows, dim)


def common_rows(channel_dim: int, *tensors: Tensor) -> list[Tensor]:
    """Views ``[B, M, D]`` of tensors of one shape, with one choice of B and M for all.

    Row ``b * M + m`` of each is the same position in the order of the leading dimensions. A tensor
    that has no such view is copied: test ``view.data_ptr() == tensor.data_ptr()`` (or use
    :func:`is_view_of`) before writing to one.
    """
    first = tensors[0]
    if channel_dim in (-1, first.ndim - 1) and all(t.is_contiguous() for t in tensors):
        return [t.reshape(1, -1, t.shape[-1]) if t.numel() else _empty_rows(t, channel_dim) for t in tensors]
    if first.numel() == 0:
        return [_empty_rows(t, channel_dim) for t in tensors]
    collapsed = [_collapse(t, channel_dim) for t in tensors]
    batch, inner = 1, collapsed[0].rows
    for c in collapsed:
        if len(c.levels) == 2:
            batch, inner = c.levels[0][0], c.levels[1][0]
            break
    return [_rows(t, c, channel_dim, batch, inner) for t, c in zip(tensors, collapsed, strict=True)]


def _rows(t: Tensor, c: _Collapsed, channel_dim: int, batch: int, inner: int) -> Tensor:
    if len(c.levels) <= 1:
        stride = c.levels[0][1] if c.levels else c.dim
        strides = (inner * stride, stride, c.channel_stride)
    elif len(c.levels) == 2 and (c.levels[0][0], c.levels[1][0]) == (batch, inner):
        strides = (c.levels[0][1], c.levels[1][1], c.channel_stride)
    else:
        return t.movedim(channel_dim, -1).reshape(batch, inner, c.dim)
    return t.as_strided((batch, inner, c.dim), strides, t.storage_offset())


def _empty_rows(t: Tensor, channel_dim: int) -> Tensor:
    rows = t.numel() // t.shape[channel_dim] if t.shape[channel_dim] else 0
    return t.new_empty((1, rows, t.shape[channel_dim]))


def is_view_of(rows: Tensor, t: Tensor) -> bool:
    """Whether writing to ``rows`` writes to ``t``."""
    return rows.data_ptr() == t.data_ptr()


def write_back(rows: Tensor, t: Tensor, channel_dim: int) -> None:
    """Copy ``rows`` into ``t`` where :func:`common_rows` could not give a view of it."""
    if not is_view_of(rows, t):
        moved = t.movedim(channel_dim, -1)
        moved.copy_(rows.reshape(moved.shape))
