"""``vq_kernels::gather_codes``: the codes that indices name, and their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import choose, requested_backend
from ..devices import current_device_of
from ..rows import common_rows
from ..tensor_checks import check_index_range
from .registry import is_plain, is_traced, operator
from .statistics import code_statistics


def empty_codes(codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None) -> Tensor:
    """Memory for the codes: ``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``; contiguous."""
    shape = list(indices.shape)
    shape.insert(channel_dim if channel_dim >= 0 else len(shape), codebook.shape[1])
    return codebook.new_empty(shape)


@operator(
    "gather_codes(Tensor codebook, Tensor indices, int channel_dim, str? backend) -> Tensor", empty_codes
)
def gather_codes(codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None) -> Tensor:
    """``codebook[indices]`` without a gradient; see :func:`vq_kernels.gather_codes`."""
    check_index_range(indices, 0, codebook.shape[0])
    codes = empty_codes(codebook, indices, channel_dim, backend)
    if codes.numel():
        (rows,) = common_rows(channel_dim, codes)  # a view: codes is contiguous
        flat = indices.contiguous().view(rows.shape[:2])
        chosen = choose("gather_codes", backend, codebook, codebook)
        with current_device_of(codebook):
            chosen.gather_codes(codebook.contiguous(), flat, rows)
    return codes


def opaque_copy(codes: Tensor) -> Tensor:
    """A copy of ``[K, D]`` that a compiler neither drops nor makes again later.

    Inductor treats ``clone`` as nothing, or repeats it in the backward graph, where the buffer has
    already changed; it does neither with an operator that it does not know.
    """
    numbers = torch.arange(codes.shape[0], dtype=torch.int64, device=codes.device)
    function = differentiable_gather_codes if codes.requires_grad else gather_codes
    return function(codes, numbers, -1, None)


def differentiable_gather_codes(
    codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None
) -> Tensor:
    """:func:`gather_codes` with a gradient for the codebook; traced programs have none."""
    if is_traced():
        return gather_codes(codebook, indices, channel_dim, backend)
    # The backward pass may run in another thread, or after a block of use_backend has closed.
    if backend is None and is_plain(codebook, indices):
        backend = choose("gather_codes", None, codebook, codebook).name
    elif backend is None and not torch.compiler.is_compiling():
        backend = requested_backend()
    codes: Tensor = GatherCodes.apply(codebook, indices, channel_dim, backend)
    return codes


class GatherCodes(torch.autograd.Function):
    """``codebook[indices]`` whose gradient is summed per code in a fixed order (no atomics)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None) -> Tensor:
        return gather_codes(codebook, indices, channel_dim, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        codebook, indices, ctx.channel_dim, ctx.backend = inputs
        ctx.save_for_backward(indices)
        ctx.codebook_size, ctx.dtype = codebook.shape[0], codebook.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        how = (indices, ctx.codebook_size, ctx.channel_dim, ctx.backend)
        # Grad mode is on in a backward pass that is itself to be differentiated.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        sums = SumsByCode.apply(grad, *how) if differentiable else _sums_by_code(grad, *how)
        return sums.to(ctx.dtype), None, None, None


def _sums_by_code(
    grad: Tensor, indices: Tensor, codebook_size: int, channel_dim: int, backend: str | None
) -> Tensor:
    """The gradients of gathered codes, summed per code: float32 ``[K, D]``, float64 for float64."""
    return code_statistics(grad, indices, codebook_size, channel_dim, False, backend)[1]


class SumsByCode(torch.autograd.Function):
    """:func:`_sums_by_code`, which is linear: its gradient gathers, and so on for any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, indices: Tensor, codebook_size: int, channel_dim: int, backend: str | None
    ) -> Tensor:
        return _sums_by_code(grad, indices, codebook_size, channel_dim, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, indices, _, ctx.channel_dim, ctx.backend = inputs
        ctx.save_for_backward(indices)
        ctx.dtype = grad.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        codes = GatherCodes.apply(grad, indices, ctx.channel_dim, ctx.backend)
        return codes.to(ctx.dtype), None, None, None, None
