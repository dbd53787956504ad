"""The operators: schemas, fakes and the one implementation that hands canonical rows to a backend.

Registered with ``torch.library.Library`` (an order of magnitude less overhead per call than
``custom_op``). The backend is chosen inside the implementation, at run time, so that tracing never
sees it. Arguments are validated in ``functional.py``; autograd lives in ``autograd.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from .backends import choose
from .rows import common_rows, write_back

_library = torch.library.Library("vq_kernels", "DEF")

_SCHEMAS = (
    "nearest_code(Tensor x, Tensor codebook, str metric, str precision, int channel_dim, str? backend)"
    " -> Tensor",
    "gather_codes(Tensor codebook, Tensor indices, int channel_dim, str? backend) -> Tensor",
    "code_statistics(Tensor x, Tensor indices, int codebook_size, int channel_dim, bool skip_nonfinite,"
    " str? backend) -> (Tensor, Tensor)",
    "ema_update_(Tensor(a!) codebook, Tensor(b!) cluster_size, Tensor(c!) embed_avg, Tensor counts,"
    " Tensor sums, float decay, float eps, bool normalize, str? backend) -> ()",
    "vector_quantize(Tensor x, Tensor codebook, Tensor? mask, str metric, str precision, int channel_dim,"
    " bool statistics, bool keep_codes, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "vector_quantize_backward(Tensor? grad_quantized, Tensor? grad_loss, Tensor x, Tensor codebook,"
    " Tensor indices, Tensor valid_rows, float scale, str gradient, int channel_dim, str? backend) -> Tensor",
)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of losses and sums: float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _without_channel(x: Tensor, channel_dim: int) -> list[int]:
    shape = list(x.shape)
    shape.pop(channel_dim)
    return shape


_HERE = contextlib.nullcontext()  # one for all calls: entering it changes nothing


def _on_device_of(t: Tensor) -> contextlib.AbstractContextManager[object]:
    """The tensor's GPU as the current one, on which backends launch."""
    if t.device.type != "cuda" or t.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(t.device)


def _check_range(indices: Tensor, lowest: int, codebook_size: int) -> None:
    """Only on the CPU: on a GPU the check would synchronise with the host."""
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = (int(t) for t in torch.aminmax(indices))
    if low < lowest or high >= codebook_size:
        bad = low if low < lowest else high
        raise ValueError(
            f"indices holds {bad}; accepted: {lowest} to {codebook_size - 1} (codebook_size - 1)"
        )


# --- implementations ------------------------------------------------------------------------------


def nearest_code(
    x: Tensor, codebook: Tensor, metric: str, precision: str, channel_dim: int, backend: str | None
) -> Tensor:
    chosen = choose(backend, x, codebook)
    (rows,) = common_rows(channel_dim, x)
    with _on_device_of(x):
        indices = chosen.nearest_code(rows, codebook.contiguous(), metric, precision)
    return indices.view(_without_channel(x, channel_dim))


def gather_codes(codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None) -> Tensor:
    _check_range(indices, 0, codebook.shape[0])
    out = _gather_codes_fake(codebook, indices, channel_dim, backend)
    if out.numel():
        (rows,) = common_rows(channel_dim, out)  # a view: out is contiguous
        flat = indices.contiguous().view(rows.shape[:2])
        with _on_device_of(codebook):
            choose(backend, codebook, codebook).gather_codes(codebook.contiguous(), flat, rows)
    return out


def code_statistics(
    x: Tensor,
    indices: Tensor,
    codebook_size: int,
    channel_dim: int,
    skip_nonfinite: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    _check_range(indices, -1, codebook_size)
    (rows,) = common_rows(channel_dim, x)
    flat = indices.contiguous().view(rows.shape[:2])
    with _on_device_of(x):
        return choose(backend, x).code_statistics(rows, flat, codebook_size, skip_nonfinite)


def ema_update_(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    normalize: bool,
    backend: str | None,
) -> None:
    with _on_device_of(codebook):
        choose(backend, codebook).ema_update_(
            codebook, cluster_size, embed_avg, counts.contiguous(), sums.contiguous(), decay, eps, normalize
        )


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    metric: str,
    precision: str,
    channel_dim: int,
    statistics: bool,
    keep_codes: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    chosen = choose(backend, x, codebook)
    quantized = torch.empty_like(x)
    rows, out = common_rows(channel_dim, x, quantized)
    flat_mask = None if mask is None else mask.contiguous().view(rows.shape[:2])
    kept = codebook.new_empty(codebook.shape if keep_codes else (0, codebook.shape[1]))
    into = kept if keep_codes else None
    with _on_device_of(x):
        indices, mse, valid_rows, counts, sums = chosen.vector_quantize(
            rows, codebook.contiguous(), flat_mask, metric, precision, out, statistics, into
        )
    write_back(out, quantized, channel_dim)
    return quantized, indices.view(_without_channel(x, channel_dim)), mse, valid_rows, counts, sums, kept


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
    grad_x = torch.empty_like(x)
    if grad_quantized is None:
        rows, out = common_rows(channel_dim, x, grad_x)
        grad_rows = None
    else:
        rows, out, grad_rows = common_rows(channel_dim, x, grad_x, grad_quantized)
    with _on_device_of(x):
        choose(backend, x, codebook).vector_quantize_backward(
            grad_rows,
            grad_loss,
            rows,
            codebook.contiguous(),
            indices.contiguous().view(rows.shape[:2]),
            valid_rows,
            scale,
            gradient,
            out,
        )
    write_back(out, grad_x, channel_dim)
    return grad_x


# --- fakes: shapes, dtypes and strides without data -----------------------------------------------


def _nearest_code_fake(
    x: Tensor, codebook: Tensor, metric: str, precision: str, channel_dim: int, backend: str | None
) -> Tensor:
    return x.new_empty(_without_channel(x, channel_dim), dtype=torch.int64)


def _gather_codes_fake(codebook: Tensor, indices: Tensor, channel_dim: int, backend: str | None) -> Tensor:
    shape = list(indices.shape)
    shape.insert(channel_dim if channel_dim >= 0 else len(shape), codebook.shape[1])
    return codebook.new_empty(shape)


def _code_statistics_fake(
    x: Tensor,
    indices: Tensor,
    codebook_size: int,
    channel_dim: int,
    skip_nonfinite: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    counts = x.new_empty(codebook_size, dtype=torch.int64)
    return counts, x.new_empty((codebook_size, x.shape[channel_dim]), dtype=compute_dtype(x))


def _vector_quantize_fake(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    metric: str,
    precision: str,
    channel_dim: int,
    statistics: bool,
    keep_codes: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    size = codebook.shape[0] if statistics else 0
    return (
        torch.empty_like(x),
        x.new_empty(_without_channel(x, channel_dim), dtype=torch.int64),
        x.new_empty((), dtype=compute_dtype(x)),
        x.new_empty((), dtype=torch.int64),
        x.new_empty(size, dtype=torch.int64),
        x.new_empty((size, x.shape[channel_dim]), dtype=compute_dtype(x)),
        codebook.new_empty(codebook.shape if keep_codes else (0, codebook.shape[1])),
    )


def _vector_quantize_backward_fake(
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


_OPERATORS: dict[str, tuple[Callable[..., object], Callable[..., object]]] = {
    "nearest_code": (nearest_code, _nearest_code_fake),
    "gather_codes": (gather_codes, _gather_codes_fake),
    "code_statistics": (code_statistics, _code_statistics_fake),
    "ema_update_": (ema_update_, lambda *args: None),
    "vector_quantize": (vector_quantize, _vector_quantize_fake),
    "vector_quantize_backward": (vector_quantize_backward, _vector_quantize_backward_fake),
}

for _schema in _SCHEMAS:
    _library.define(_schema)
for _name, (_implementation, _fake) in _OPERATORS.items():
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vq_kernels::{_name}", _fake, lib=_library)


# --- the eager fast path --------------------------------------------------------------------------


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether calling the implementation directly is the same as going through the dispatcher.

    It is unless something wants to see the operator: a compiler, a functorch transform (vmap,
    func.grad), a dispatch mode, or a tensor subclass.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and all(t is None or type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)
    )


def call(name: str, *args: object) -> object:
    """Run an operator: straight to the kernel where nothing needs to see it, else through torch.ops."""
    if is_plain(*(a for a in args if isinstance(a, Tensor))):
        with torch.no_grad():
            return _OPERATORS[name][0](*args)
    return getattr(torch.ops.vq_kernels, name)(*args)
