"""The public functions, which are ``vq_kernels``' too: validate once, then call.

``x`` is ``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``; any strides, never copied to change
the layout. ``codebook`` is ``[K, D]``. See ``backends/base.py`` for the exactness contract and the
edge cases, which are the same on every backend.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backends import QuantizeOptions
from .checks import check_choice, check_flag, check_integer, check_number, check_positive
from .exportable import exportable
from .operators import ema, gather, quantize, search, statistics
from .operators.prepared import PreparedCodebook, codes_of, prepare_codebook
from .operators.registry import needs_gradient
from .rows import shape_without_channel
from .tensor_checks import (
    check_beside,
    check_codebook,
    check_device,
    check_dtype,
    check_integer_tensor,
    check_mask,
    check_rows,
    check_search,
    check_shape,
)

__all__ = [
    "PreparedCodebook",
    "VectorQuantized",
    "code_statistics",
    "ema_update_",
    "gather_codes",
    "nearest_code",
    "prepare_codebook",
    "vector_quantize",
]

PRECISIONS = ("exact", "high", "fast")
GRADIENTS = ("straight_through", "rotation_trick")
_FLOAT32 = (torch.float32,)
_COUNTS = (torch.float32, torch.int64)


@exportable
class VectorQuantized(NamedTuple):
    """What :func:`vector_quantize` returns.

    For example, x ``[2, 64, 8, 8]`` with ``channel_dim=1`` and codebook ``[512, 64]`` give quantized
    ``[2, 64, 8, 8]``, indices ``[2, 8, 8]``, loss ``[]``, counts ``[512]`` and sums ``[512, 64]``.
    """

    quantized: Tensor  # x's shape and dtype: the nearest code of each row; 0 where masked
    indices: Tensor  # x's shape without D, int64; -1 where masked
    loss: Tensor  # [] float32 (float64 for float64 x)
    counts: Tensor  # [K] int64: rows per code
    sums: Tensor  # [K, D] float32 (float64 for float64 x): sum of the rows of each code


def _is_compiled() -> bool:
    """Whether a graph with a backward pass is made; an exported one has none."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def nearest_code(
    x: Tensor,
    codebook: Tensor | PreparedCodebook,
    *,
    metric: str = "l2",
    precision: str = "exact",
    channel_dim: int = -1,
    backend: str | None = None,
) -> Tensor:
    """Index of the nearest code of each vector: ``argmin_j |x - e_j|^2``, lowest index on ties.

    Args:
        x: ``[..., D]`` or, with ``channel_dim=1``, ``[B, D, ...]``; float32, bfloat16, float16, float64.
        codebook: ``[K, D]``, float32 or x's dtype, K at least 1; or one that :func:`prepare_codebook` packed.
        metric: ``"l2"``, or ``"cosine"`` for ``argmax_j x . e_j`` over the unit-length codes given.
        precision: ``"exact"`` (the truly nearest code, the same on every backend, device and batch),
            ``"high"`` (error of plain float32) or ``"fast"`` (one pass in the machine's matrix precision).
        channel_dim: where D stands: -1 or 1.
        backend: a name of :func:`available_backends`, or None for automatic choice.

    Returns:
        int64 indices of x's shape without D. A row holding NaN or infinity gets index 0.

    Raises:
        ValueError: shape, device, metric, precision or backend not accepted, or a prepared codebook that
            no longer is its tensor's.
        TypeError: dtype not accepted or not a tensor.
    """
    codes = codes_of(codebook, metric)
    check_search(x, codes, channel_dim)
    check_choice(PRECISIONS, precision=precision)
    x, how = x.detach(), (metric, precision, channel_dim, backend)
    if isinstance(codebook, PreparedCodebook):
        return search.nearest_code_prepared(x, codes, codebook, *how)
    return search.nearest_code(x, codes.detach(), *how)


def gather_codes(
    codebook: Tensor, indices: Tensor, *, channel_dim: int = -1, backend: str | None = None
) -> Tensor:
    """``codebook[indices]``: ``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``; contiguous.

    Differentiable in the codebook; the backward pass sums per code in a fixed order and so is
    deterministic. Indices outside 0..K-1 raise ValueError on the CPU.
    """
    check_codebook(codebook)
    check_integer_tensor("indices", indices)
    check_device("indices", indices, codebook.device, "the codebook's")
    check_choice((-1, 1), channel_dim=channel_dim)
    if channel_dim == 1 and indices.ndim < 1:
        raise ValueError("indices has shape (); accepted with channel_dim=1: at least [B]")
    indices = indices.long()
    differentiable = needs_gradient(codebook)
    function = gather.differentiable_gather_codes if differentiable else gather.gather_codes
    return function(codebook, indices, channel_dim, backend)


def code_statistics(
    x: Tensor, indices: Tensor, codebook_size: int, *, channel_dim: int = -1, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Rows per code and their sums, deterministic: what an EMA or k-means update needs.

    Args:
        x: as in :func:`nearest_code`.
        indices: integers of x's shape without D, in 0..codebook_size-1; -1 leaves a row out.
        codebook_size: K.

    Returns:
        counts ``[K]`` int64 and sums ``[K, D]`` float32 (float64 for float64 x). Rows holding NaN or
        infinity are left out of both.
    """
    check_rows(x, channel_dim)
    check_integer_tensor("indices", indices)
    check_device("indices", indices, x.device, "x's")
    check_shape("indices", indices, shape_without_channel(x, channel_dim), "x's shape without D")
    if not isinstance(codebook_size, torch.SymInt):
        check_integer(1, codebook_size=codebook_size)
    return statistics.code_statistics(x.detach(), indices.long(), codebook_size, channel_dim, True, backend)


def ema_update_(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    *,
    decay: float,
    eps: float,
    normalize: bool = False,
    backend: str | None = None,
) -> None:
    """One exponential-moving-average step of the codebook, in place and fused (VQ-VAE, appendix A.1).

    ``cluster_size`` and ``embed_avg`` move towards ``counts`` and ``sums`` by ``1 - decay``; the
    codebook becomes ``embed_avg`` over the Laplace-smoothed sizes, each row scaled to unit length
    with ``normalize``. The smoothed sizes are not written back. Nothing changes if no row was counted.

    A code whose sum or average float32 cannot hold (rows near 1e38, or some hundred of 1e36) takes no part in
    the step: its row of all three stays as it is, on every backend, and the device is not waited for.

    Args:
        codebook: ``[K, D]`` float32, like ``embed_avg`` and ``sums``; contiguous.
        cluster_size: ``[K]`` float32.
        counts: ``[K]`` int64 or float32.
        decay: in [0, 1].
        eps: smoothing, above 0: without it a code that took no row would become 0 / 0.
    """
    check_codebook(codebook)
    size, dim = codebook.shape
    check_dtype("codebook", codebook, _FLOAT32)
    for name, t, shape, dtypes in (
        ("cluster_size", cluster_size, (size,), _FLOAT32),
        ("embed_avg", embed_avg, (size, dim), _FLOAT32),
        ("counts", counts, (size,), _COUNTS),
        ("sums", sums, (size, dim), _FLOAT32),
    ):
        check_beside(name, t, codebook, "the codebook", shape, dtypes)
    written = {"codebook": codebook, "cluster_size": cluster_size, "embed_avg": embed_avg}
    for name, t in written.items():
        if not t.is_contiguous():
            raise ValueError(
                f"{name} has strides {t.stride()}; accepted: contiguous, as it is written in place"
            )
    check_number(0.0, 1.0, decay=decay)
    check_positive(eps=eps)
    check_flag(normalize=normalize)
    ema.ema_update_(
        codebook.detach(),
        cluster_size.detach(),
        embed_avg.detach(),
        counts,
        sums,
        float(decay),
        float(eps),
        normalize,
        backend,
    )
    if not torch.compiler.is_compiling():
        # A Library operator does not tell autograd of its writes; saved tensors must see them.
        torch.autograd.graph.increment_version(tuple(written.values()))


def vector_quantize(
    x: Tensor,
    codebook: Tensor | PreparedCodebook,
    *,
    commitment_weight: float = 1.0,
    codebook_weight: float = 0.0,
    gradient: str = "straight_through",
    metric: str = "l2",
    precision: str = "exact",
    channel_dim: int = -1,
    mask: Tensor | None = None,
    statistics: bool = True,
    keep_codes: bool = False,
    backend: str | None = None,
) -> VectorQuantized:
    """Search, gather, gradient estimator, losses and statistics in the fewest passes over memory.

    ``loss = commitment_weight * mean |sg(e) - x|^2 + codebook_weight * mean |e - sg(x)|^2``
    (VQ-VAE, equation 3), the means over unmasked rows and D.

    Args:
        x, codebook, metric, precision, channel_dim, backend: as in :func:`nearest_code`. A prepared codebook
            is for evaluation: x must not require a gradient, and ``codebook_weight`` must be 0.
        commitment_weight: weight of the term that moves x; at least 0.
        codebook_weight: weight of the term that moves the codebook; needs ``statistics``.
        gradient: how the gradient of ``quantized`` reaches x: ``"straight_through"``, or
            ``"rotation_trick"`` (arXiv:2410.06424).
        mask: bool, x's shape without D, True where a row counts.
        statistics: False skips counts and sums (they come back with size 0).
        keep_codes: the backward pass, which gathers the codes again, reads a copy made here; needed
            where ``codebook`` is updated in place in between.

    Returns:
        :class:`VectorQuantized`.
    """
    codes = codes_of(codebook, metric)
    check_search(x, codes, channel_dim)
    check_choice(PRECISIONS, precision=precision)
    check_choice(GRADIENTS, gradient=gradient)
    check_number(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
    check_flag(statistics=statistics, keep_codes=keep_codes)
    if codebook_weight and not statistics:
        raise ValueError(
            "statistics is False; accepted with codebook_weight > 0: True, its gradient is made of them"
        )
    if mask is not None:
        check_mask(mask, shape_without_channel(x, channel_dim), x.device)
    differentiable = needs_gradient(x, codes)
    if differentiable and not (keep_codes or codes.requires_grad) and _is_compiled():
        # Where a graph writes to the codebook later, no version is raised that its backward pass would see.
        codes = gather.opaque_copy(codes)
    if isinstance(codebook, PreparedCodebook) and (differentiable or codebook_weight):
        raise ValueError(
            f"codebook is a PreparedCodebook, x requires a gradient: {differentiable}, codebook_weight is "
            f"{codebook_weight}; accepted: no gradient and 0, or the codebook's tensor"
        )
    options = QuantizeOptions(
        metric,
        precision,
        channel_dim,
        statistics,
        keep_codes and differentiable,
        backend,
        gradient,
        float(commitment_weight),
        float(codebook_weight),
        # With or without a gradient now: the sums are then the same, bit for bit, as when a checkpointed
        # part of a model runs first without one.
        sum_differences=codebook_weight != 0,
    )
    if isinstance(codebook, PreparedCodebook):
        result = quantize.vector_quantize_prepared(x.detach(), codes, codebook, mask, options)
    else:
        function = quantize.differentiable_vector_quantize if differentiable else quantize.vector_quantize
        result = function(x, codes, mask, options)
    sums = result.sums
    if options.sum_differences:
        sums = quantize.sums_of_rows(sums, result.counts, codes)
    return VectorQuantized(result.quantized, result.indices, result.loss, result.counts, sums)
