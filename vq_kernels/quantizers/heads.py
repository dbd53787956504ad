"""From the caller's tensors to one view of rows per codebook, and back: nothing here copies x."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows(NamedTuple):
    """The vectors of a batch: one view per codebook, all of one shape, and the mask that fits each."""

    views: list[Tensor]  # each [..., D] or, with channel_dim 1, [B, D, *S]
    mask: Tensor | None  # bool, a view's shape without D
    channel_dim: int  # -1 or 1

    def to_unit_length(self) -> Rows:
        """In float32 at least: the square of a float16 overflows above 256."""
        scaled = []
        for x in self.views:
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            scaled.append(F.normalize(wide, dim=self.channel_dim, eps=1e-6).to(x.dtype))
        return self._replace(views=scaled)


def row_mask(x: Tensor, channel_dim: int, mask: Tensor | None, lens: Tensor | None) -> Tensor | None:
    """Which rows count: bool, x's shape without its channels, from ``mask`` or from lengths ``lens``."""
    if mask is None and lens is None:
        return None
    shape = list(x.shape)
    shape.pop(channel_dim)
    if mask is not None:
        if lens is not None:
            raise ValueError("mask and lens are both given; accepted: one of them")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask is {_describe(mask)}; accepted: a bool tensor, True where a row counts")
        if list(mask.shape) != shape:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}; accepted: {tuple(shape)}, x without its channels"
            )
        if mask.device != x.device:
            raise ValueError(f"mask is on {mask.device}; accepted: x's device {x.device}")
        return mask
    if not isinstance(lens, Tensor) or lens.dtype.is_floating_point or lens.dtype == torch.bool:
        raise TypeError(f"lens is {_describe(lens)}; accepted: an integer tensor of sequence lengths")
    if len(shape) != 2 or lens.shape != (shape[0],):
        raise ValueError(
            f"lens has shape {tuple(lens.shape)} for x of shape {tuple(x.shape)}; "
            "accepted: [B] for sequences [B, N, dim] (channel-first: [B, dim, N])"
        )
    if lens.device != x.device:
        raise ValueError(f"lens is on {lens.device}; accepted: x's device {x.device}")
    return torch.arange(shape[1], device=x.device) < lens[:, None]


def _describe(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def split_heads(x: Tensor, mask: Tensor | None, channel_dim: int, heads: int, separate: bool) -> Rows:
    """One view of x per codebook, and the mask that fits each of them.

    Channel-last ``[..., H D]`` gives ``[..., H, D]`` for a shared codebook, H times ``[..., D]`` for
    separate ones; channel-first ``[B, H D, *S]`` gives ``[B H, D, *S]``, or H times ``[B, D, *S]``.
    """
    if heads == 1:
        return Rows([x], mask, channel_dim)
    x = x.unflatten(channel_dim, (heads, -1))
    if separate:
        return Rows(list(x.unbind(-2 if channel_dim == -1 else 1)), mask, channel_dim)
    if channel_dim == -1:
        return Rows([x], None if mask is None else mask.unsqueeze(-1).expand(x.shape[:-1]), -1)
    if mask is not None:
        mask = mask.unsqueeze(1).expand(-1, heads, *mask.shape[1:]).flatten(0, 1)
    return Rows([x.flatten(0, 1)], mask, 1)


def merge_heads(
    quantized: list[Tensor], indices: list[Tensor], channel_dim: int, heads: int, separate: bool
) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`split_heads` for its results; indices get the heads as last dimension."""
    if heads == 1:
        return quantized[0], indices[0]
    if separate:
        return torch.cat(quantized, channel_dim), torch.stack(indices, -1)
    if channel_dim == -1:
        return quantized[0].flatten(-2), indices[0]
    batch_and_heads = (quantized[0].shape[0] // heads, heads)
    merged = quantized[0].unflatten(0, batch_and_heads).flatten(1, 2)
    return merged, indices[0].unflatten(0, batch_and_heads).movedim(1, -1)
