"""The CPU backend: C++ kernels of ``vq_kernels._C`` for AMX, AVX-512, AVX2, NEON and any other CPU.

The instruction set is chosen at run time, and by the shapes the pass that a search begins with: float32,
bfloat16, int8 or int16 over packed codes, or for a few rows float32 over codes as they are ("direct"). The
result is exact after each. The environment variables ``VQ_ISA`` (portable, neon, dotprod, i8mm, avx2,
avxvnni, avx512, avx512vnni, avx512bf16, amxint8 or amx) and ``VQ_FIRST_PASS`` override these choices,
for tests; dotprod and i8mm are used where ``VQ_ISA`` names them alone.
Tensors arrive checked (``base.py``); here they become addresses, sizes and strides.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from ..build_info import why_not_built
from . import marshal
from .base import COMMON_OPTIONS, Operation, QuantizeOptions, QuantizeResult

name = "native"
quantize_options = COMMON_OPTIONS


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
        if t.dtype not in marshal.DTYPES:
            return f"{label} is {t.dtype}, the native backend serves float32, bfloat16 and float16"
    return None


def cpu_features() -> dict[str, list[str] | str]:
    """``machine`` and ``compiled``: instruction sets; ``used``: the one that kernels run with, whose searches
    can begin with ``first_passes``."""
    features: dict[str, list[str] | str] = _module().cpu_features()
    return features


def prepare_codebook(codebook: Tensor, metric: str) -> object:
    options = marshal.search_options(metric, "exact")
    return _module().prepare_codebook(marshal.codes(codebook), options, torch.get_num_threads())


def nearest_code(
    x: Tensor, codebook: Tensor, metric: str, precision: str, prepared: object | None = None
) -> Tensor:
    indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
    _module().nearest_code(
        marshal.rows(x),
        marshal.codes(codebook),
        prepared,
        marshal.search_options(metric, precision),
        torch.get_num_threads(),
        indices.data_ptr(),
    )
    return indices


def gather_codes(codebook: Tensor, indices: Tensor, out: Tensor) -> None:
    _module().gather_codes(
        marshal.codes(codebook), indices.data_ptr(), marshal.rows(out), torch.get_num_threads()
    )


def code_statistics(
    x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    counts = torch.empty(codebook_size, dtype=torch.int64, device=x.device)
    sums = torch.empty((codebook_size, x.shape[-1]), dtype=torch.float32, device=x.device)
    _module().code_statistics(
        marshal.rows(x),
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
    prepared: object | None = None,
) -> QuantizeResult:
    outputs = marshal.empty_result(x, codebook, options, quantized, codebook_copy)
    _module().vector_quantize(
        marshal.rows(x),
        marshal.codes(codebook),
        prepared,
        marshal.address(mask),
        marshal.quantize_options(options),
        torch.get_num_threads(),
        marshal.result(outputs, options),
    )
    return outputs


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
        None if grad_quantized is None else marshal.rows(grad_quantized),
        loss_grad,
        marshal.rows(x),
        marshal.codes(codebook),
        indices.data_ptr(),
        marshal.GRADIENTS[gradient],
        torch.get_num_threads(),
        marshal.rows(out),
    )
