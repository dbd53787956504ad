"""CUDA C++ kernels (``csrc/cuda``): an implementation that needs no Triton.

Tensors become pointers, sizes and strides here; scratch memory comes from torch's allocator on the
current stream, so that nothing waits for the device and everything can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..build_info import why_not_built
from ..devices import launch_queue_of
from . import marshal
from .base import COMMON_OPTIONS, Operation, QuantizeOptions, QuantizeResult

# Row numbers of a search, rounded up to whole blocks, are 32 bits wide (csrc/cuda/search.cuh).
_MOST_ROWS = 2**31 - 2**15


class CudaBackend:
    """The kernels of an extension's ``cuda`` submodule, for tensors of one device type.

    Args:
        module: the submodule, or None where it was not compiled.
        device_type: ``"cuda"``; ``"cpu"`` for a build of the kernels that runs on the host.
        name: what the backend is called.
        missing: why ``module`` is None.
        bound_scale: what the error bounds of exact search are multiplied by; tests tighten them with it.
    """

    quantize_options = COMMON_OPTIONS

    def __init__(
        self,
        module: ModuleType | None,
        device_type: str = "cuda",
        name: str = "cuda",
        missing: str = "the native module was built without CUDA",
        bound_scale: float = 1.0,
    ) -> None:
        self.name = name
        self._module = module
        self._device_type = device_type
        self._missing = missing
        self.bound_scale = bound_scale

    # --- availability -----------------------------------------------------------------------------

    def unavailable_reason(self) -> str | None:
        if self._module is None:
            return self._missing
        if self._device_type == "cuda" and not torch.cuda.is_available():
            return "torch sees no CUDA device"
        # Asking must not be what starts CUDA: a process that has can no longer fork workers that use it.
        started = self._device_type == "cuda" and torch.cuda.is_initialized()
        return self._runtime_problem if started else None

    @functools.cached_property
    def _runtime_problem(self) -> str | None:
        """Why the module's own CUDA runtime cannot work, such as a driver that is older than it."""
        try:
            self._kernels.capability(torch.cuda.current_device())
        except RuntimeError as error:
            return f"the CUDA runtime that it was built with does not work here: {error}"
        return None

    def unsupported_reason(
        self, operation: Operation, x: Tensor, codebook: Tensor | None = None
    ) -> str | None:
        if x.device.type != self._device_type:
            return f"it serves {self._device_type} tensors, not {x.device.type}"
        if x.dtype not in marshal.DTYPES:
            return f"it serves float32, bfloat16 and float16, not {x.dtype}"
        if codebook is not None and codebook.dtype not in (torch.float32, x.dtype):
            return f"it serves a codebook of float32 or of x's dtype {x.dtype}, not {codebook.dtype}"
        if codebook is not None and operation in ("nearest_code", "vector_quantize"):
            rows = x.numel() // codebook.shape[1]
            if rows > _MOST_ROWS:
                return (
                    f"it serves up to {_MOST_ROWS} rows in one call, not {rows}: divide x into several calls"
                )
        return None

    # --- kernels and scratch memory -----------------------------------------------------------------

    @property
    def _kernels(self) -> Any:
        if self._module is None:
            raise RuntimeError(f"backend {self.name!r} is not available: {self._missing}")
        return self._module

    @staticmethod
    def _scratch(t: Tensor, size: int) -> Tensor:
        return torch.empty(max(size, 1), dtype=torch.uint8, device=t.device)

    # --- operations ---------------------------------------------------------------------------------

    def nearest_code(self, x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
        return self._search(x, codebook, metric, precision)[0]

    def _search(self, x: Tensor, codebook: Tensor, metric: str, precision: str) -> tuple[Tensor, Tensor]:
        """The indices, and the scratch memory as the kernels leave it."""
        device, stream = launch_queue_of(x)
        indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
        rows, codes = marshal.rows(x), marshal.codes(codebook)
        options = marshal.search_options(metric, precision, self.bound_scale)
        size = self._kernels.search_workspace(rows, codes, options[1], False, False, device)
        scratch = self._scratch(x, size)
        self._kernels.nearest_code(
            rows, codes, options, indices.data_ptr(), scratch.data_ptr(), size, device, stream
        )
        return indices, scratch

    def open_rows(self, x: Tensor, codebook: Tensor, metric: str) -> tuple[int, int]:
        """How many rows ``[B, M, D]`` an exact search leaves open after one product, and after all of them.

        The second number is 0 where one pass takes all products. For measurements: it waits for the device.
        """
        _, scratch = self._search(x, codebook, metric, "exact")
        device, _ = launch_queue_of(x)
        precision = marshal.search_options(metric, "exact", 1.0)[1]
        at = self._kernels.open_counts(
            marshal.rows(x), marshal.codes(codebook), precision, False, False, device
        )
        first, second = scratch[at : at + 8].view(torch.int32).tolist()
        return first, second

    def gather_codes(self, codebook: Tensor, indices: Tensor, out: Tensor) -> None:
        device, stream = launch_queue_of(codebook)
        self._kernels.gather_codes(
            marshal.codes(codebook), indices.data_ptr(), marshal.rows(out), device, stream
        )

    def code_statistics(
        self, x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
    ) -> tuple[Tensor, Tensor]:
        device, stream = launch_queue_of(x)
        counts = torch.empty(codebook_size, dtype=torch.int64, device=x.device)
        sums = torch.empty((codebook_size, x.shape[2]), dtype=torch.float32, device=x.device)
        size = self._kernels.statistics_workspace(indices.numel(), codebook_size, x.shape[2])
        scratch = self._scratch(x, size)
        self._kernels.code_statistics(
            marshal.rows(x), indices.data_ptr(), codebook_size, skip_nonfinite, counts.data_ptr(),
            sums.data_ptr(), scratch.data_ptr(), size, device, stream,
        )  # fmt: skip
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
        device, stream = launch_queue_of(codebook)
        size = self._kernels.ema_workspace(codebook.shape[0])
        scratch = self._scratch(codebook, size)
        self._kernels.ema_update(
            codebook.data_ptr(), cluster_size.data_ptr(), embed_avg.data_ptr(), counts.data_ptr(),
            counts.dtype == torch.float32, sums.data_ptr(), *codebook.shape, 1 - decay, eps, normalize,
            scratch.data_ptr(), size, device, stream,
        )  # fmt: skip

    def vector_quantize(
        self,
        x: Tensor,
        codebook: Tensor,
        mask: Tensor | None,
        options: QuantizeOptions,
        quantized: Tensor,
        codebook_copy: Tensor | None,
    ) -> QuantizeResult:
        device, stream = launch_queue_of(x)
        rows, codes = marshal.rows(x), marshal.codes(codebook)
        packed = marshal.quantize_options(options, self.bound_scale)
        outputs = marshal.empty_result(x, codebook, options, quantized, codebook_copy)
        size = self._kernels.search_workspace(rows, codes, packed[1], True, options.statistics, device)
        scratch = self._scratch(x, size)
        self._kernels.vector_quantize(
            rows, codes, marshal.address(mask), packed, marshal.result(outputs, options),
            scratch.data_ptr(), size, device, stream,
        )  # fmt: skip
        return outputs

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
        if grad_quantized is not None and grad_quantized.dtype != x.dtype:
            raise TypeError(f"grad_quantized has dtype {grad_quantized.dtype}; accepted: x's, {x.dtype}")
        if grad_loss is not None and grad_loss.dtype != torch.float32:
            raise TypeError(f"grad_loss has dtype {grad_loss.dtype}; accepted: torch.float32")
        device, stream = launch_queue_of(x)
        self._kernels.vector_quantize_backward(
            None if grad_quantized is None else marshal.rows(grad_quantized), marshal.address(grad_loss),
            marshal.rows(x), marshal.codes(codebook), indices.data_ptr(), valid_rows.data_ptr(), scale,
            marshal.GRADIENTS[gradient], marshal.rows(out), device, stream,
        )  # fmt: skip


def _make_backend() -> CudaBackend:
    if (reason := why_not_built("native") or why_not_built("cuda")) is not None:
        return CudaBackend(None, missing=reason)
    try:
        native = importlib.import_module("vq_kernels._C")
    except ImportError as error:
        return CudaBackend(None, missing=f"vq_kernels._C cannot be loaded: {error}")
    return CudaBackend(getattr(native, "cuda", None))


backend = _make_backend()
