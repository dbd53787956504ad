"""The CPU backend: C++ kernels of ``vq_kernels._C`` for AMX, AVX-512, AVX2 and any other CPU.

The instruction set is chosen at run time; the environment variable ``VQ_ISA`` (portable, avx2, avx512
or amx) overrides the choice, for tests. Tensors arrive checked (``base.py``); here they become
addresses, sizes and strides.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from ..build_info import why_not_built
from .base import Operation, QuantizeOptions, QuantizeResult

name = "native"

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_METRICS = {"l2": 0, "cosine": 1}
_PRECISIONS = {"exact": 0, "high": 1, "fast": 2}
_GRADIENTS = {"straight_through": 0, "rotation_trick": 1}


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or why there is none. torch is imported first, so that both share one OpenMP."""
    try:
        return importlib.import_module("vq_kernels._C")
    except ModuleNotFoundError:
        return why_not_built("native") or "vq_kernels._C was built for another version of Python"
    except ImportError as error:
        return f"vq_kernels._C cannot be loaded: {error}"


def _module() -> ModuleType:
    module = _load()
    if isinstance(module, str):
        raise RuntimeError(module)
    return module


def unavailable_reason() -> str | None:
    module = _load()
    return module if isinstance(module, str) else None


def unsupported_reason(operation: Operation, x: Tensor, codebook: Tensor | None = None) -> str | None:
    for label, t in (("x", x), ("codebook", codebook)):
        if t is None:
            continue
        if t.device.type != "cpu":
            return f"{label} is on {t.device}, the native backend serves the CPU"
        if t.dtype not in _DTYPES:
            return f"{label} is {t.dtype}, the native backend serves float32, bfloat16 and float16"
    return None


def cpu_features() -> dict[str, list[str] | str]:
    """``machine`` and ``compiled``: instruction sets; ``used``: the one that kernels run with."""
    features: dict[str, list[str] | str] = _module().cpu_features()
    return features


def _rows(x: Tensor) -> tuple[int, ...]:
    return (x.data_ptr(), _DTYPES[x.dtype], *x.shape, *x.stride())


def _codes(codebook: Tensor) -> tuple[int, ...]:
    return (codebook.data_ptr(), _DTYPES[codebook.dtype], *codebook.shape)


def nearest_code(x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
    indices = torch.empty(x.shape[:2], dtype=torch.int64)
    _module().nearest_code(
        _rows(x),
        _codes(codebook),
        _METRICS[metric],
        _PRECISIONS[precision],
        torch.get_num_threads(),
        indices.data_ptr(),
    )
    return indices


def gather_codes(codebook: Tensor, indices: Tensor, out: Tensor) -> None:
    _module().gather_codes(_codes(codebook), indices.data_ptr(), _rows(out), torch.get_num_threads())


def code_statistics(
    x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    counts = torch.empty(codebook_size, dtype=torch.int64)
    sums = torch.empty(codebook_size, x.shape[-1], dtype=torch.float32)
    _module().code_statistics(
        _rows(x),
        indices.data_ptr(),
        codebook_size,
        skip_nonfinite,
        torch.get_num_threads(),
        counts.data_ptr(),
        sums.data_ptr(),
    )
    return counts, sums


def ema_update_(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    normalize: bool,
) -> None:
    _module().ema_update(
        codebook.data_ptr(),
        cluster_size.data_ptr(),
        embed_avg.data_ptr(),
        counts.data_ptr(),
        counts.dtype == torch.float32,
        sums.data_ptr(),
        *codebook.shape,
        1.0 - decay,
        eps,
        normalize,
        torch.get_num_threads(),
    )


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    options: QuantizeOptions,
    quantized: Tensor,
    codebook_copy: Tensor | None,
) -> QuantizeResult:
    if codebook_copy is not None:
        codebook_copy.copy_(codebook)
    size = codebook.shape[0] if options.statistics else 0
    indices = torch.empty(x.shape[:2], dtype=torch.int64)
    mse = torch.empty((), dtype=torch.float32)
    valid_rows = torch.empty((), dtype=torch.int64)
    counts = torch.empty(size, dtype=torch.int64)
    sums = torch.empty(size, x.shape[-1], dtype=torch.float32)
    _module().vector_quantize(
        _rows(x),
        _codes(codebook),
        0 if mask is None else mask.data_ptr(),
        _METRICS[options.metric],
        _PRECISIONS[options.precision],
        torch.get_num_threads(),
        _rows(quantized),
        indices.data_ptr(),
        mse.data_ptr(),
        valid_rows.data_ptr(),
        counts.data_ptr() if options.statistics else 0,
        sums.data_ptr() if options.statistics else 0,
    )
    loss = mse if options.loss_weight == 1.0 else mse * options.loss_weight
    return QuantizeResult(quantized, indices, loss, valid_rows, counts, sums, codebook_copy)


def vector_quantize_backward(
    grad_quantized: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    valid_rows: Tensor,
    scale: float,
    gradient: str,
    out: Tensor,
) -> None:
    loss_grad = None
    if grad_loss is not None:
        loss_grad = float(grad_loss) * scale / max(int(valid_rows), 1)
    _module().vector_quantize_backward(
        None if grad_quantized is None else _rows(grad_quantized),
        _rows(x),
        _codes(codebook),
        indices.data_ptr(),
        loss_grad,
        _GRADIENTS[gradient],
        torch.get_num_threads(),
        _rows(out),
    )
