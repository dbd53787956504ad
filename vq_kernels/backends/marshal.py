"""Tensors and options as the tuples that ``vq_kernels._C`` takes (``csrc/bindings.h`` reads them).

Nothing is checked here: tensors arrive as ``base.py`` describes them. An address of 0 stands for a tensor
that is left out. The numbers of dtypes, metrics, precisions and gradients are those of
``csrc/vq_types.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import QuantizeOptions, QuantizeResult

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
METRICS = {"l2": 0, "cosine": 1}
PRECISIONS = {"exact": 0, "high": 1, "fast": 2}
GRADIENTS = {"straight_through": 0, "rotation_trick": 1}

Rows = tuple[int, int, int, int, int, int, int, int]
Codes = tuple[int, int, int, int]
SearchOptions = tuple[int, int, float]
Result = tuple[Rows, int, int, int, int, int, int]


def rows(t: Tensor) -> Rows:
    """``[B, M, D]``: address, dtype, B, M, D and the three strides in elements."""
    return (t.data_ptr(), DTYPES[t.dtype], *t.shape, *t.stride())


def codes(codebook: Tensor) -> Codes:
    """``[K, D]``, contiguous: address, dtype, K, D."""
    return (codebook.data_ptr(), DTYPES[codebook.dtype], *codebook.shape)


def address(t: Tensor | None) -> int:
    """The address of a contiguous tensor's data; 0 for None."""
    return 0 if t is None else t.data_ptr()


def search_options(metric: str, precision: str, bound_scale: float = 1.0) -> SearchOptions:
    """``bound_scale`` multiplies the error bounds of ``"exact"``: for tests that they are needed."""
    return METRICS[metric], PRECISIONS[precision], bound_scale


def quantize_options(
    options: QuantizeOptions, bound_scale: float = 1.0
) -> tuple[int, int, float, QuantizeOptions]:
    """Those of the search, and all of them, of which ``VQ_QUANTIZE_OPTIONS`` are read by their names."""
    return METRICS[options.metric], PRECISIONS[options.precision], bound_scale, options


def empty_result(
    x: Tensor,
    codebook: Tensor,
    options: QuantizeOptions,
    quantized: Tensor,
    codebook_copy: Tensor | None,
) -> QuantizeResult:
    """Fresh tensors beside x for all that the fused step gives, around the two that are given."""
    device, size = x.device, codebook.shape[0] if options.statistics else 0
    return QuantizeResult(
        quantized,
        torch.empty(x.shape[:2], dtype=torch.int64, device=device),
        torch.empty((), dtype=torch.float32, device=device),
        torch.empty((), dtype=torch.int64, device=device),
        torch.empty(size, dtype=torch.int64, device=device),
        torch.empty((size, x.shape[2]), dtype=torch.float32, device=device),
        codebook_copy,
    )


def result(outputs: QuantizeResult, options: QuantizeOptions) -> Result:
    """Where the fused step writes: quantized, indices, loss, valid_rows, counts, sums, codebook_copy."""
    return (
        rows(outputs.quantized),
        outputs.indices.data_ptr(),
        outputs.loss.data_ptr(),
        outputs.valid_rows.data_ptr(),
        outputs.counts.data_ptr() if options.statistics else 0,
        outputs.sums.data_ptr() if options.statistics else 0,
        0 if outputs.codebook_copy is None else outputs.codebook_copy.data_ptr(),
    )
