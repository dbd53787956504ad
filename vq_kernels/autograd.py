"""Every autograd Function. They wrap the operators from outside, so that the operators stay opaque kernels.

No tensor of size N x D is kept besides the input itself: the quantized rows are gathered again in
the backward pass from the codebook, which is small and lies in cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops


class GatherCodes(torch.autograd.Function):
    """``codebook[indices]`` whose gradient is summed per code in a fixed order (no atomics)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None) -> Tensor:
        return cast(Tensor, ops.call("gather_codes", codebook, indices, channel_dim, backend))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        codebook, indices, ctx.channel_dim, ctx.backend = inputs
        ctx.save_for_backward(indices)
        ctx.codebook_size, ctx.dtype = codebook.shape[0], codebook.dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        args = (grad, indices, ctx.codebook_size, ctx.channel_dim, False, ctx.backend)
        _, sums = cast(tuple[Tensor, Tensor], ops.call("code_statistics", *args))
        return sums.to(ctx.dtype), None, None, None


class Options(NamedTuple):
    """What :class:`VectorQuantize` is told besides tensors; see :func:`vq_kernels.vector_quantize`."""

    commitment_weight: float
    codebook_weight: float
    gradient: str
    metric: str
    precision: str
    channel_dim: int
    statistics: bool
    keep_codes: bool
    backend: str | None


class VectorQuantize(torch.autograd.Function):
    """The fused step. Outputs: quantized, loss, indices, counts, sums, valid_rows, kept codes.

    With n unmasked rows and e = codebook[indices]::

        loss       = (commitment_weight + codebook_weight) / (n D) * sum |e - x|^2
        d loss/dx  = 2 commitment_weight / (n D) * (x - e)
        d loss/de_j = 2 codebook_weight / (n D) * (counts_j e_j - sums_j)

    The codebook's gradient needs nothing but the statistics, so it costs K x D, not N x D.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, codebook: Tensor, mask: Tensor | None, options: Options) -> tuple[Tensor, ...]:
        o = options
        args = (
            x,
            codebook,
            mask,
            o.metric,
            o.precision,
            o.channel_dim,
            o.statistics,
            o.keep_codes,
            o.backend,
        )
        quantized, indices, mse, valid_rows, counts, sums, kept = cast(
            tuple[Tensor, ...], ops.call("vector_quantize", *args)
        )
        weight = o.commitment_weight + o.codebook_weight
        loss = mse if weight == 1.0 else mse * weight  # on a GPU a product is a launch
        return quantized, loss, indices, counts, sums, valid_rows, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, codebook, _, ctx.options = inputs
        _, _, indices, counts, sums, valid_rows, kept = output
        ctx.mark_non_differentiable(indices, counts, sums, valid_rows, kept)
        ctx.set_materialize_grads(False)
        codes = kept if ctx.options.keep_codes else codebook
        ctx.save_for_backward(x, codes, indices, counts, sums, valid_rows)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_quantized: Tensor | None, grad_loss: Tensor | None, *unused: None
    ) -> tuple[Tensor | None, ...]:
        x, codebook, indices, counts, sums, valid_rows = ctx.saved_tensors
        o: Options = ctx.options
        dim = x.shape[o.channel_dim]
        grad_x = grad_codebook = None
        if ctx.needs_input_grad[0] and (grad_quantized is not None or grad_loss is not None):
            pull = grad_loss if o.commitment_weight else None
            scale = 2.0 * o.commitment_weight / dim
            args = (grad_quantized, pull, x, codebook, indices, valid_rows, scale, o.gradient)
            grad_x = cast(Tensor, ops.call("vector_quantize_backward", *args, o.channel_dim, o.backend))
        if ctx.needs_input_grad[1] and grad_loss is not None and o.codebook_weight:
            pull = grad_loss * (2.0 * o.codebook_weight / dim) / valid_rows.clamp(min=1)
            grad_codebook = (pull * (counts[:, None] * codebook - sums)).to(codebook.dtype)
        return grad_x, grad_codebook, None, None


class EagerVectorQuantize(torch.autograd.Function):
    """:class:`VectorQuantize` in the older form, which functorch cannot transform.

    For eager calls on plain tensors: PyTorch binds the signature of a Function with ``setup_context``
    anew in every call, which costs more than the kernel on small inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codebook: Tensor, mask: Tensor | None, options: Options
    ) -> tuple[Tensor, ...]:
        outputs = VectorQuantize.forward(x, codebook, mask, options)
        VectorQuantize.setup_context(ctx, (x, codebook, mask, options), outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return VectorQuantize.backward(ctx, *grads)
