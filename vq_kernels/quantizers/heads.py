"""From the caller's tensors to one view of rows per codebook, and back: nothing here copies x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import is_host_readable
from ..functional import VectorQuantized, gather_codes
from ..rows import shape_without_channel
from ..tensor_checks import check_device, check_integer_tensor, check_mask


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


class Layout(NamedTuple):
    """Where a layer expects the channels of its input, and how many dimensions."""

    dim: int
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool

    def channel_dim_of(self, x: Tensor) -> int:
        """-1 or 1; ValueError for a shape that does not fit."""
        if self.accept_image_fmap:
            wanted, fits = f"[B, {self.dim}, H, W]", x.ndim == 4
        elif self.accept_3d_fmap:
            wanted, fits = f"[B, {self.dim}, T, H, W]", x.ndim == 5
        elif self.channel_last:
            wanted, fits = f"[..., {self.dim}] of at least two dimensions", x.ndim >= 2
        else:
            wanted, fits = f"[B, {self.dim}] with none to three dimensions after it", 2 <= x.ndim <= 5
        channel_dim = -1 if self.channel_last or x.ndim == 2 else 1
        if not fits or x.shape[channel_dim] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}; accepted: {wanted}")
        return channel_dim


def row_mask(x: Tensor, channel_dim: int, mask: Tensor | None, lens: Tensor | None) -> Tensor | None:
    """Which rows count: bool, x's shape without its channels, from ``mask`` or from lengths ``lens``."""
    shape = shape_without_channel(x, channel_dim)
    if mask is not None:
        if lens is not None:
            raise ValueError("mask and lens are both given; accepted: one of them")
        check_mask(mask, shape, x.device)
        return mask
    if lens is None:
        return None
    check_integer_tensor("lens", lens)
    if len(shape) != 2 or lens.shape != (shape[0],):
        raise ValueError(
            f"lens has shape {tuple(lens.shape)} for x of shape {tuple(x.shape)}; "
            "accepted: [B] for sequences [B, N, dim] (channel-first: [B, dim, N])"
        )
    check_device("lens", lens, x.device, "x's")
    if is_host_readable(lens) and not torch.compiler.is_compiling() and len(lens):
        low, high = (int(t) for t in lens.aminmax())
        if low < 0 or high > shape[1]:
            bad = low if low < 0 else high
            raise ValueError(f"lens holds {bad}; accepted: 0 to {shape[1]}, the length of x's sequences")
    return torch.arange(shape[1], dtype=torch.int64, device=x.device) < lens[:, None]


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


def merge_heads(results: Sequence[VectorQuantized], channel_dim: int, heads: int) -> VectorQuantized:
    """The inverse of :func:`split_heads` for the results of its views.

    Indices get the heads as last dimension, counts and sums the codebooks as first: ``[H, K]`` and
    ``[H, K, D]``, H being 1 for a shared one, where there are any. The loss is the mean over the views.
    """
    if len(results) == 1:
        (result,) = results
        if result.counts.numel():
            result = result._replace(counts=result.counts.unsqueeze(0), sums=result.sums.unsqueeze(0))
        if heads > 1 and channel_dim == -1:
            return result._replace(quantized=result.quantized.flatten(-2))
        if heads > 1:
            batch_and_heads = (result.quantized.shape[0] // heads, heads)
            return result._replace(
                quantized=result.quantized.unflatten(0, batch_and_heads).flatten(1, 2),
                indices=result.indices.unflatten(0, batch_and_heads).movedim(1, -1),
            )
        return result
    return VectorQuantized(
        torch.cat([r.quantized for r in results], channel_dim),
        torch.stack([r.indices for r in results], -1),
        torch.stack([r.loss for r in results]).mean(),
        torch.stack([r.counts for r in results]),
        torch.stack([r.sums for r in results]),
    )


def with_gradient_of_codes(
    results: Sequence[VectorQuantized], codebooks: Tensor, channel_dim: int
) -> list[VectorQuantized]:
    """Let the gradient of ``quantized`` reach the chosen codes of ``[H, K, D]``, one codebook a result.

    The values stay as they are; a row that is NaN takes no part.
    """
    if not torch.is_grad_enabled():
        return list(results)
    passed = []
    for result, codes in zip(results, codebooks, strict=True):
        chosen = gather_codes(codes, result.indices.clamp(min=0), channel_dim=channel_dim)
        takes_part = (result.indices >= 0).unsqueeze(channel_dim) & ~result.quantized.isnan()
        chosen = torch.where(takes_part, chosen, 0.0).to(result.quantized.dtype)
        passed.append(result._replace(quantized=result.quantized + (chosen - chosen.detach())))
    return passed


def with_gradient(loss: Tensor) -> Tensor:
    """The loss of rows that need no gradient, so that ``loss.backward()`` does nothing instead of raising."""
    if loss.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return loss
    return loss.detach().requires_grad_()
