"""``vq_kernels::vector_quantize`` and its backward pass: search, gather, loss and statistics in one.

No tensor of size N x D is kept besides the input itself: the quantized rows are gathered again in the
backward pass from the codebook, which is small and lies in cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import Backend, QuantizeOptions, QuantizeResult, choose, requested_backend
from ..devices import current_device_of, is_host_readable
from ..rows import common_rows, shape_without_channel, write_back
from ..tensor_checks import check_index_range
from .first_run import refuse_second_run
from .registry import check_memory, define, is_plain, is_traced, operator, options_schema
from .second_order import differences_by_codes, gradient_for_x
from .statistics import compute_dtype

if TYPE_CHECKING:
    from .prepared import PreparedCodebook


def _run(
    chosen: Backend,
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    options: QuantizeOptions,
    packed: Mapping[str, Any] = MappingProxyType({}),
) -> QuantizeResult:
    """A backend on canonical rows; results in the caller's shape."""
    check_memory(x, codebook, mask)
    if options.keep_codes:
        refuse_second_run()
    channel_dim = options.channel_dim
    quantized = torch.empty_like(x)
    rows, quantized_rows = common_rows(channel_dim, x, quantized)
    flat_mask = None if mask is None else mask.contiguous().view(rows.shape[:2])
    copy = codebook.new_empty(codebook.shape) if options.keep_codes else None
    with current_device_of(x):
        result = chosen.vector_quantize(
            rows, codebook.contiguous(), flat_mask, options, quantized_rows, copy, **packed
        )
    write_back(quantized_rows, quantized, channel_dim)
    return QuantizeResult(
        quantized,
        result.indices.view(shape_without_channel(x, channel_dim)),
        result.loss,
        result.valid_rows,
        result.counts,
        result.sums,
        codebook.new_empty((0, codebook.shape[1])) if copy is None else copy,
    )


def _implementation(x: Tensor, codebook: Tensor, mask: Tensor | None, *packed: Any) -> tuple[Any, ...]:
    options = QuantizeOptions(*packed)
    chosen = choose("vector_quantize", options.backend, x, codebook, options)
    return tuple(_run(chosen, x, codebook, mask, options))


def _fake(x: Tensor, codebook: Tensor, mask: Tensor | None, *packed: Any) -> tuple[Tensor, ...]:
    options = QuantizeOptions(*packed)
    size = codebook.shape[0] if options.statistics else 0
    dim = codebook.shape[1]
    return (
        torch.empty_like(x),
        x.new_empty(shape_without_channel(x, options.channel_dim), dtype=torch.int64),
        x.new_empty((), dtype=compute_dtype(x)),
        x.new_empty((), dtype=torch.int64),
        x.new_empty(size, dtype=torch.int64),
        x.new_empty((size, dim), dtype=compute_dtype(x)),
        codebook.new_empty((codebook.shape[0] if options.keep_codes else 0, dim)),
    )


_dispatch = define(
    f"vector_quantize(Tensor x, Tensor codebook, Tensor? mask, {options_schema(QuantizeOptions)})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _implementation,
    _fake,
)


def vector_quantize(
    x: Tensor, codebook: Tensor, mask: Tensor | None, options: QuantizeOptions
) -> QuantizeResult:
    """The fused step without gradients, in x's shape; the copy is ``[0, D]`` without ``keep_codes``."""
    if is_plain(x, codebook, mask):
        chosen = choose("vector_quantize", options.backend, x, codebook, options)
        with torch.no_grad():
            return _run(chosen, x, codebook, mask, options)
    return QuantizeResult(*_dispatch(x, codebook, mask, *options))


def vector_quantize_prepared(
    x: Tensor, codes: Tensor, prepared: PreparedCodebook, mask: Tensor | None, options: QuantizeOptions
) -> QuantizeResult:
    """:func:`vector_quantize` with packed codes; with the codes alone, where something looks at the call."""
    if not is_plain(x, mask):
        return vector_quantize(x, codes, mask, options)
    chosen = choose("vector_quantize", options.backend, x, codes, options)
    with torch.no_grad():
        return _run(chosen, x, codes, mask, options, prepared.packed_for(chosen.name))


def sums_of_rows(differences: Tensor, counts: Tensor, codebook: Tensor) -> Tensor:
    """The sums of x ``[K, D]`` for what ``sum_differences`` gives, the sums of x - e."""
    return torch.addcmul(differences, counts.unsqueeze(1), codebook.detach().nan_to_num(0.0, 0.0, 0.0))


def _backward_fake(
    grad_quantized: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    valid_rows: Tensor,
    scale: float,
    gradient: str,
    channel_dim: int,
    backend: str | None,
) -> Tensor:
    return torch.empty_like(x)


def _check_saved_indices(*args: Any) -> None:
    """In programs that PyTorch runs, what was kept of the forward pass may have been written to since."""
    codebook, indices = args[3:5]
    check_index_range(indices, -1, codebook.shape[0])


@operator(
    "vector_quantize_backward(Tensor? grad_quantized, Tensor? grad_loss, Tensor x, Tensor codebook,"
    " Tensor indices, Tensor valid_rows, float scale, str gradient, int channel_dim, str? backend) -> Tensor",
    _backward_fake,
    check_dispatched=_check_saved_indices,
)
def vector_quantize_backward(
    grad_quantized: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    valid_rows: Tensor,
    scale: float,
    gradient: str,
    channel_dim: int,
    backend: str | None,
) -> Tensor:
    """The gradient for x, of x's shape, dtype and strides; see ``Backend.vector_quantize_backward``."""
    chosen = choose("vector_quantize_backward", backend, x, codebook)
    grad_x = torch.empty_like(x)
    if grad_quantized is None:
        rows, out = common_rows(channel_dim, x, grad_x)
        grad_rows = None
    else:
        rows, out, grad_rows = common_rows(channel_dim, x, grad_x, grad_quantized)
    flat = indices.contiguous().view(rows.shape[:2])
    with current_device_of(x):
        chosen.vector_quantize_backward(
            grad_rows, grad_loss, rows, codebook.contiguous(), flat, valid_rows, scale, gradient, out
        )
    write_back(out, grad_x, channel_dim)
    return grad_x


class VectorQuantize(torch.autograd.Function):
    """The fused step with its gradients; outputs are the fields of :class:`QuantizeResult`, in its order.

    With n unmasked rows and e = codebook[indices]::

        loss        = (commitment_weight + codebook_weight) / (n D) * sum |e - x|^2
        d loss/dx   = 2 commitment_weight / (n D) * (x - e)
        d loss/de_j = -2 codebook_weight / (n D) * sum (x - e_j)          over the rows of code j

    The codebook's gradient needs nothing but the statistics, so it costs K x D, not N x D. They are to be
    those of ``sum_differences``: ``counts_j e_j - sum x`` cancels where rows and codes are far from 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, codebook: Tensor, mask: Tensor | None, options: QuantizeOptions
    ) -> tuple[Any, ...]:
        return tuple(vector_quantize(x, codebook, mask, options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        x, codebook, _, options = inputs
        _save_for_backward(ctx, x, codebook, options, QuantizeResult(*output), output[1])

    @staticmethod
    def backward(
        ctx: Any, grad_quantized: Tensor | None, _: None, grad_loss: Tensor | None, *unused: None
    ) -> tuple[Tensor | None, ...]:
        x, codes, indices, valid_rows, counts, differences = ctx.saved_tensors
        options: QuantizeOptions = ctx.options
        dim = codes.shape[1]
        grad_x = grad_codebook = None
        if ctx.needs_input_grad[0] and (grad_quantized is not None or grad_loss is not None):
            commitment_grad = grad_loss if options.commitment_weight else None
            saved = (x, codes, indices, valid_rows)
            # Grad mode is on in a backward pass that is itself to be differentiated.
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                grad_x = gradient_for_x(grad_quantized, commitment_grad, *saved, options)
            else:
                scale = 2.0 * options.commitment_weight / dim
                how = (scale, options.gradient, options.channel_dim, options.backend)
                grad_x = vector_quantize_backward(grad_quantized, commitment_grad, *saved, *how)
        if ctx.needs_input_grad[1] and grad_loss is not None and options.codebook_weight:
            loss_grad = grad_loss * (-2.0 * options.codebook_weight / dim) / valid_rows.clamp(min=1)
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                differences = differences_by_codes(differences, counts, codes)
            grad_codebook = (loss_grad * differences).to(codes.dtype)
        return grad_x, grad_codebook, None, None


def _save_for_backward(
    ctx: Any,
    x: Tensor,
    codebook: Tensor,
    options: QuantizeOptions,
    result: QuantizeResult,
    indices: Tensor,
) -> None:
    ctx.options = options
    ctx.mark_non_differentiable(*(t for t in result if t is not result.quantized and t is not result.loss))
    ctx.set_materialize_grads(False)
    codes = result.codebook_copy if options.keep_codes else codebook
    # What only the gradient of the codebook reads is the caller's to write to where there is none.
    statistics = (result.counts, result.sums) if options.codebook_weight else (None, None)
    ctx.save_for_backward(x, codes, indices, result.valid_rows, *statistics)


class EagerVectorQuantize(torch.autograd.Function):
    """:class:`VectorQuantize` in the older form, which functorch cannot transform.

    For eager calls on plain tensors: PyTorch binds the signature of a Function with ``setup_context``
    anew in every call, which costs more than the kernel on small inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codebook: Tensor, mask: Tensor | None, options: QuantizeOptions
    ) -> tuple[Any, ...]:
        chosen = choose("vector_quantize", options.backend, x, codebook, options)
        result = _run(chosen, x, codebook, mask, options)
        # On the CPU the caller's indices may be written to behind autograd's back, through numpy for one.
        indices = result.indices.clone() if is_host_readable(x) else result.indices
        # The backward pass may run in another thread, or after a block of use_backend has closed.
        _save_for_backward(ctx, x, codebook, options._replace(backend=chosen.name), result, indices)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return VectorQuantize.backward(ctx, *grads)


def differentiable_vector_quantize(
    x: Tensor, codebook: Tensor, mask: Tensor | None, options: QuantizeOptions
) -> QuantizeResult:
    """:func:`vector_quantize` with gradients for x, and with ``codebook_weight`` for the codebook.

    A traced program (``torch.jit.trace``) holds the operator, which can be saved, and has no gradients.
    """
    if is_traced():
        return vector_quantize(x, codebook, mask, options)
    if is_plain(x, codebook, mask):
        return QuantizeResult(*EagerVectorQuantize.apply(x, codebook, mask, options))
    if options.backend is None and not torch.compiler.is_compiling():
        options = options._replace(backend=requested_backend())
    return QuantizeResult(*VectorQuantize.apply(x, codebook, mask, options))
