"""The public functions: validate once, then call.

``x`` is ``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``; any strides, never copied to change
the layout. ``codebook`` is ``[K, D]``. See ``backends/base.py`` for the exactness contract and the
edge cases, which are the same on every backend.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import ops
from .autograd import EagerVectorQuantize, GatherCodes, Options, VectorQuantize

METRICS = ("l2", "cosine")
PRECISIONS = ("exact", "high", "fast")
GRADIENTS = ("straight_through", "rotation_trick")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class VectorQuantized(NamedTuple):
    """What :func:`vector_quantize` returns."""

    quantized: Tensor  # x's shape and dtype: the nearest code of each row; 0 where masked
    indices: Tensor  # x's shape without D, int64; -1 where masked
    loss: Tensor  # [] float32 (float64 for float64 x)
    counts: Tensor  # [K] int64: rows per code
    sums: Tensor  # [K, D] float32 (float64 for float64 x): sum of the rows of each code


def nearest_code(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: str = "l2",
    precision: str = "exact",
    channel_dim: int = -1,
    backend: str | None = None,
) -> Tensor:
    """Index of the nearest code of each vector: ``argmin_j |x - e_j|^2``, lowest index on ties.

    Args:
        x: ``[..., D]`` or, with ``channel_dim=1``, ``[B, D, ...]``; float32, bfloat16, float16, float64.
        codebook: ``[K, D]``, float32 or x's dtype, K at least 1.
        metric: ``"l2"``, or ``"cosine"`` for ``argmax_j x . e_j`` over the unit-length codes given.
        precision: ``"exact"`` (the truly nearest code, the same on every backend, device and batch),
            ``"high"`` (error of plain float32) or ``"fast"`` (one pass in the machine's matrix precision).
        channel_dim: where D stands: -1 or 1.
        backend: a name of :func:`available_backends`, or None for automatic choice.

    Returns:
        int64 indices of x's shape without D. A row holding NaN or infinity gets index 0.

    Raises:
        ValueError: shape, device, metric, precision or backend not accepted.
        TypeError: dtype not accepted or not a tensor.
    """
    channel_dim = _check_x_and_codebook(x, codebook, channel_dim)
    _check_choice("metric", metric, METRICS)
    _check_choice("precision", precision, PRECISIONS)
    args = (x.detach(), codebook.detach(), metric, precision, channel_dim, backend)
    return cast(Tensor, ops.call("nearest_code", *args))


def gather_codes(
    codebook: Tensor, indices: Tensor, *, channel_dim: int = -1, backend: str | None = None
) -> Tensor:
    """``codebook[indices]``: ``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``; contiguous.

    Differentiable in the codebook; the backward pass sums per code in a fixed order and so is
    deterministic. Indices outside 0..K-1 raise ValueError on the CPU.
    """
    _check_codebook(codebook)
    _check_integer_tensor("indices", indices, codebook)
    if channel_dim not in (-1, 1):
        raise ValueError(f"channel_dim is {channel_dim!r}; accepted: -1 (last) or 1")
    if channel_dim == 1 and indices.ndim < 1:
        raise ValueError("indices has no dimension; with channel_dim=1 it needs at least [B]")
    indices = indices.long()
    if codebook.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, GatherCodes.apply(codebook, indices, channel_dim, backend))
    return GatherCodes.forward(codebook, indices, channel_dim, backend)


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
    channel_dim = _check_x(x, channel_dim)
    _check_integer_tensor("indices", indices, x)
    if isinstance(codebook_size, bool) or not isinstance(codebook_size, (int, torch.SymInt)):
        raise TypeError(f"codebook_size is {codebook_size!r}; accepted: an integer of at least 1")
    if codebook_size < 1:
        raise ValueError(f"codebook_size is {codebook_size!r}; accepted: an integer of at least 1")
    _check_same_shape("indices", indices, x, channel_dim)
    args = (x.detach(), indices.long(), codebook_size, channel_dim, True, backend)
    return cast(tuple[Tensor, Tensor], ops.call("code_statistics", *args))


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

    Args:
        codebook: ``[K, D]`` float32, like ``embed_avg`` and ``sums``; contiguous.
        cluster_size: ``[K]`` float32.
        counts: ``[K]`` int64 or float32.
        decay: in [0, 1].
        eps: smoothing, at least 0.
    """
    _check_codebook(codebook)
    size, dim = codebook.shape
    written = {"codebook": codebook, "cluster_size": cluster_size, "embed_avg": embed_avg}
    shapes = {"cluster_size": (size,), "embed_avg": (size, dim), "counts": (size,), "sums": (size, dim)}
    for name, t in (written | {"counts": counts, "sums": sums}).items():
        _check_tensor(name, t)
        if name != "codebook" and tuple(t.shape) != shapes[name]:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}; accepted: {shapes[name]}, as the codebook asks"
            )
        if t.device != codebook.device:
            raise ValueError(f"{name} is on {t.device}; accepted: the codebook's device {codebook.device}")
        accepted = (torch.float32, torch.int64) if name == "counts" else (torch.float32,)
        if t.dtype not in accepted:
            raise TypeError(f"{name} has dtype {t.dtype}; accepted: {_names(accepted)}")
        if name in written and not t.is_contiguous():
            raise ValueError(
                f"{name} has strides {t.stride()}; accepted: contiguous, as it is written in place"
            )
    _check_number("decay", decay, 0.0, 1.0)
    _check_number("eps", eps, 0.0, math.inf)
    _check_choice("normalize", normalize, (False, True))
    detached = tuple(t.detach() for t in written.values())
    ops.call("ema_update_", *detached, counts, sums, float(decay), float(eps), normalize, backend)
    if not torch.compiler.is_compiling():
        # A Library operator does not tell autograd of its writes; saved tensors must see them.
        torch.autograd.graph.increment_version(tuple(written.values()))


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
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
        x, codebook, metric, precision, channel_dim, backend: as in :func:`nearest_code`.
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
    channel_dim = _check_x_and_codebook(x, codebook, channel_dim)
    _check_choice("metric", metric, METRICS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("gradient", gradient, GRADIENTS)
    _check_number("commitment_weight", commitment_weight, 0.0, math.inf)
    _check_number("codebook_weight", codebook_weight, 0.0, math.inf)
    if codebook_weight and not statistics:
        raise ValueError(
            "statistics is False; accepted with codebook_weight > 0: True, its gradient is made of them"
        )
    if mask is not None:
        _check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask has dtype {mask.dtype}; accepted: torch.bool")
        if mask.device != x.device:
            raise ValueError(f"mask is on {mask.device}; accepted: x's device {x.device}")
        _check_same_shape("mask", mask, x, channel_dim)
    differentiable = torch.is_grad_enabled() and (x.requires_grad or codebook.requires_grad)
    options = Options(
        float(commitment_weight),
        float(codebook_weight),
        gradient,
        metric,
        precision,
        channel_dim,
        bool(statistics),
        bool(keep_codes) and differentiable,
        backend,
    )
    if differentiable:
        function = EagerVectorQuantize if ops.is_plain(x, codebook, mask) else VectorQuantize
        outputs = function.apply(x, codebook, mask, options)
    else:
        outputs = VectorQuantize.forward(x, codebook, mask, options)
    quantized, loss, indices, counts, sums, *_ = outputs
    return VectorQuantized(quantized, indices, loss, counts, sums)


# --- validation -----------------------------------------------------------------------------------


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def _check_tensor(name: str, t: object) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is a {type(t).__name__}; accepted: a torch.Tensor")
    if t.layout != torch.strided:
        raise TypeError(f"{name} has layout {t.layout}; accepted: torch.strided")


def _check_choice(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted: {', '.join(map(repr, accepted))}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}; accepted: a number from {low} to {high}")
    if not (low <= value <= high) or math.isinf(value):
        raise ValueError(f"{name} is {value!r}; accepted: a finite number from {low} to {high}")


def _check_x(x: Tensor, channel_dim: int) -> int:
    """The channel dimension, -1 or 1."""
    _check_tensor("x", x)
    if x.dtype not in _DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; accepted: {_names(_DTYPES)}")
    if channel_dim not in (-1, 1):
        raise ValueError(f"channel_dim is {channel_dim!r}; accepted: -1 (last) or 1")
    if x.ndim < (1 if channel_dim == -1 else 2):
        wanted = "[..., D]" if channel_dim == -1 else "[B, D, ...]"
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted with channel_dim={channel_dim}: {wanted}")
    if x.shape[channel_dim] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)} with D = 0; accepted: D of at least 1")
    return channel_dim


def _check_codebook(codebook: Tensor) -> None:
    _check_tensor("codebook", codebook)
    if codebook.dtype not in _DTYPES:
        raise TypeError(f"codebook has dtype {codebook.dtype}; accepted: {_names(_DTYPES)}")
    if codebook.ndim != 2 or codebook.shape[0] == 0 or codebook.shape[1] == 0:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; accepted: [K, D], both at least 1")


def _check_x_and_codebook(x: Tensor, codebook: Tensor, channel_dim: int) -> int:
    channel_dim = _check_x(x, channel_dim)
    _check_codebook(codebook)
    if x.shape[channel_dim] != codebook.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} with D = {x.shape[channel_dim]} in dimension {channel_dim}; "
            f"accepted: D = {codebook.shape[1]}, as codebook {tuple(codebook.shape)} has "
            "(channel-first input needs channel_dim=1)"
        )
    if codebook.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"codebook has dtype {codebook.dtype}; accepted: float32 or x's dtype {x.dtype}")
    if x.device != codebook.device:
        raise ValueError(f"codebook is on {codebook.device}; accepted: x's device {x.device}")
    return channel_dim


def _check_integer_tensor(name: str, t: Tensor, like: Tensor) -> None:
    _check_tensor(name, t)
    if t.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"{name} has dtype {t.dtype}; accepted: int64 or a smaller integer dtype")
    if t.device != like.device:
        raise ValueError(f"{name} is on {t.device}; accepted: {like.device}, where the other tensors are")


def _check_same_shape(name: str, t: Tensor, x: Tensor, channel_dim: int) -> None:
    shape = list(x.shape)
    shape.pop(channel_dim)
    if list(t.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; accepted: {tuple(shape)}, x's shape without D")
