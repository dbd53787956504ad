"""The Triton backend: NVIDIA GPUs from compute capability 8.0, and the interpreter for tests.

Importing this package imports neither triton nor any kernel; the first call does.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from ..base import COMMON_OPTIONS, Operation, QuantizeOptions, QuantizeResult

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Row numbers are 32 bits wide where a tile of rows is added to them.
_MAX_ROWS = 2**31 - 2**15


@functools.cache
def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def _import_problem() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 6):
        return f"triton {triton.__version__} is too old, 3.6 or newer is needed"
    return None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


class TritonBackend:
    """``base.Backend`` on Triton kernels, one operation a module."""

    name = "triton"
    quantize_options = COMMON_OPTIONS

    def unavailable_reason(self) -> str | None:
        if (problem := _import_problem()) is not None:
            return problem
        if _interpreting():
            return None
        if torch.version.hip is not None:
            return "the error bound of AMD's matrix cores has not been verified on hardware"
        if not torch.cuda.is_available():
            return "no CUDA device is visible to torch, and TRITON_INTERPRET=1 is not set"
        return None

    def unsupported_reason(
        self, operation: Operation, x: Tensor, codebook: Tensor | None = None
    ) -> str | None:
        if x.dtype not in _DTYPES:
            return f"x is {x.dtype}; accepted: float32, bfloat16, float16"
        if x.device.type == "cpu":
            if not _interpreting():
                return "x is on the CPU, which needs TRITON_INTERPRET=1"
        elif x.device.type != "cuda":
            return f"x is on {x.device}; accepted: CUDA devices"
        elif _capability(x.device) < (8, 0):
            return "the GPU's compute capability is below 8.0"
        if x.ndim == 3 and x.shape[0] * x.shape[1] > _MAX_ROWS:
            return f"x has {x.shape[0] * x.shape[1]} rows; accepted: at most {_MAX_ROWS}"
        return None

    def prepare_codebook(self, codebook: Tensor, metric: str) -> object:
        packed: object = _kernels("packed").pack(codebook, metric)
        return packed

    def nearest_code(
        self, x: Tensor, codebook: Tensor, metric: str, precision: str, prepared: object | None = None
    ) -> Tensor:
        indices: Tensor = _kernels("nearest").nearest_code(x, codebook, metric, precision, prepared)
        return indices

    def gather_codes(self, codebook: Tensor, indices: Tensor, out: Tensor) -> None:
        _kernels("gather").gather_codes(codebook, indices, out)

    def code_statistics(
        self, x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
    ) -> tuple[Tensor, Tensor]:
        counts, sums = _kernels("statistics").code_statistics(x, indices, codebook_size, skip_nonfinite)
        return counts, sums

    def ema_update_(
        self,
        codebook: Tensor,
        cluster_size: Tensor,
        embed_avg: Tensor,
        counts: Tensor,
        sums: Tensor,
        decay: float,
        eps: float,
        normalize: bool,
    ) -> None:
        _kernels("ema").ema_update_(codebook, cluster_size, embed_avg, counts, sums, decay, eps, normalize)

    def vector_quantize(
        self,
        x: Tensor,
        codebook: Tensor,
        mask: Tensor | None,
        options: QuantizeOptions,
        quantized: Tensor,
        codebook_copy: Tensor | None,
        prepared: object | None = None,
    ) -> QuantizeResult:
        quantize = _kernels("quantize").vector_quantize
        result: QuantizeResult = quantize(x, codebook, mask, options, quantized, codebook_copy, prepared)
        return result

    def vector_quantize_backward(
        self,
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
        _kernels("backward").vector_quantize_backward(
            grad_quantized, grad_loss, x, codebook, indices, valid_rows, scale, gradient, out
        )


backend = TritonBackend()
