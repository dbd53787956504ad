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
from .base import Operation, QuantizeOptions, QuantizeResult

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_METRICS = {"l2": 0, "cosine": 1}
_PRECISIONS = {"exact": 0, "high": 1, "fast": 2}

_Rows = tuple[int, int, int, int, int, int, int, int]
_Codes = tuple[int, int, int, int]


def _rows(t: Tensor) -> _Rows:
    return (t.data_ptr(), _DTYPES[t.dtype], *t.shape, *t.stride())


def _codes(codebook: Tensor) -> _Codes:
    return (codebook.data_ptr(), _DTYPES[codebook.dtype], codebook.shape[0], codebook.shape[1])


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


class CudaBackend:
    """The kernels of an extension's ``cuda`` submodule, for tensors of one device type.

    Args:
        module: the submodule, or None where it was not compiled.
        device_type: ``"cuda"``; ``"cpu"`` for a build of the kernels that runs on the host.
        name: what the backend is called.
        missing: why ``module`` is None.
    """

    def __init__(
        self,
        module: ModuleType | None,
        device_type: str = "cuda",
        name: str = "cuda",
        missing: str = "the native module was built without CUDA",
    ) -> None:
        self.name = name
        self._module = module
        self._device_type = device_type
        self._missing = missing

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
        if x.dtype not in _DTYPES:
            return f"it serves float32, bfloat16 and float16, not {x.dtype}"
        if codebook is not None and codebook.dtype not in (torch.float32, x.dtype):
            return f"it serves a codebook of float32 or of x's dtype {x.dtype}, not {codebook.dtype}"
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
        device, stream = launch_queue_of(x)
        indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
        rows, codes, level = _rows(x), _codes(codebook), _PRECISIONS[precision]
        size = self._kernels.search_workspace(rows, codes, level, False, False, device)
        scratch = self._scratch(x, size)
        self._kernels.nearest_code(
            rows, codes, _METRICS[metric], level, indices.data_ptr(), scratch.data_ptr(), size,
            device, stream,
        )  # fmt: skip
        return indices

    def gather_codes(self, codebook: Tensor, indices: Tensor, out: Tensor) -> None:
        device, stream = launch_queue_of(codebook)
        self._kernels.gather_codes(_codes(codebook), indices.data_ptr(), _rows(out), device, stream)

    def code_statistics(
        self, x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
    ) -> tuple[Tensor, Tensor]:
        device, stream = launch_queue_of(x)
        counts = torch.empty(codebook_size, dtype=torch.int64, device=x.device)
        sums = torch.empty((codebook_size, x.shape[2]), dtype=torch.float32, device=x.device)
        size = self._kernels.statistics_workspace(indices.numel(), codebook_size, x.shape[2])
        scratch = self._scratch(x, size)
        self._kernels.code_statistics(
            _rows(x), indices.data_ptr(), codebook_size, skip_nonfinite, counts.data_ptr(),
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
        if codebook_copy is not None:
            codebook_copy.copy_(codebook)
        device, stream = launch_queue_of(x)
        statistics = options.statistics
        size, dim = codebook.shape if statistics else (0, x.shape[2])
        indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
        mse = torch.empty((), dtype=torch.float32, device=x.device)
        valid_rows = torch.empty((), dtype=torch.int64, device=x.device)
        counts = torch.empty(size, dtype=torch.int64, device=x.device)
        sums = torch.empty((size, dim), dtype=torch.float32, device=x.device)
        rows, codes, level = _rows(x), _codes(codebook), _PRECISIONS[options.precision]
        bytes_needed = self._kernels.search_workspace(rows, codes, level, True, statistics, device)
        scratch = self._scratch(x, bytes_needed)
        self._kernels.vector_quantize(
            rows, codes, _METRICS[options.metric], level, indices.data_ptr(), _rows(quantized),
            _pointer(mask), mse.data_ptr(), valid_rows.data_ptr(), counts.data_ptr() if statistics else 0,
            sums.data_ptr() if statistics else 0, scratch.data_ptr(), bytes_needed, device, stream,
        )  # fmt: skip
        loss = mse if options.loss_weight == 1.0 else mse * options.loss_weight
        return QuantizeResult(quantized, indices, loss, valid_rows, counts, sums, codebook_copy)

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
        self._kernels.backward(
            None if grad_quantized is None else _rows(grad_quantized), _pointer(grad_loss), _rows(x),
            _codes(codebook), indices.data_ptr(), valid_rows.data_ptr(), scale,
            gradient == "rotation_trick", _rows(out), device, stream,
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
