"""ONNX export: the operators of this package in standard ONNX, for any runtime::

    import vq_kernels.onnx

    table = vq_kernels.onnx.translations()
    torch.onnx.export(model.eval(), (x,), "model.onnx", custom_translation_table=table)

A runtime has no fused search: the graph computes the scores as one matrix product of size N x K, which the
kernels of this package never hold. ``precision="exact"`` becomes scores in float64, which choose the same
code unless two codes are nearer to each other than their rounding (2^-50 of |x||e|); ``"high"`` and
``"fast"`` become float32. The edge cases are those of the operators (``backends/base.py``). Needs onnxscript.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .backends.base import QuantizeOptions

# Numbers of the ONNX format (onnx.TensorProto.DataType).
_FLOAT, _INT64, _BOOL, _DOUBLE = 1, 7, 9, 11


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``: every operator without side effects.

    Raises:
        ImportError: onnxscript is not installed.
    """
    _opset()
    operators = torch.ops.vq_kernels
    return {
        operators.nearest_code.default: _nearest_code,
        operators.gather_codes.default: _gather_codes,
        operators.code_statistics.default: _code_statistics,
        operators.vector_quantize.default: _vector_quantize,
    }


def _opset() -> Any:
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise ImportError("onnxscript is not installed; accepted: `pip install onnxscript`") from error
    return opset18


def _ints(*values: int) -> Any:
    return _opset().Constant(value_ints=list(values))


def _rows(x: Any, channel_dim: int) -> Any:
    """``[..., D]`` in float32, or in float64 for float64 x."""
    ndim = len(x.shape)
    order = [d for d in range(ndim) if d != channel_dim % ndim]
    rows = _computable(x)
    return rows if channel_dim in (-1, ndim - 1) else _opset().Transpose(rows, perm=[*order, channel_dim])


def _channel_at(t: Any, channel_dim: int, ndim: int) -> Any:
    """The channels of a channel-last tensor of ``ndim`` dimensions moved to ``channel_dim``."""
    order = [*range(ndim - 1)]
    order.insert(channel_dim % ndim, ndim - 1)
    return t if order == [*range(ndim)] else _opset().Transpose(t, perm=order)


def _computable(t: Any) -> Any:
    """float32, or float64 as it is: what every ONNX operator used here takes."""
    return t if t.dtype.value == _DOUBLE else _opset().Cast(t, to=_FLOAT)


def _is_finite(rows: Any) -> Any:
    """Whether all of the last dimension is: ``[..., 1]``."""
    op = _opset()
    bad = op.Cast(op.Or(op.IsNaN(rows), op.IsInf(rows)), to=_INT64)
    return op.Equal(op.ReduceMax(bad, _ints(-1), keepdims=1), _ints(0))


def _search(rows: Any, codebook: Any, metric: str, precision: str) -> Any:
    """Indices ``[...]`` of channel-last rows ``[..., D]``."""
    op = _opset()
    codes = _computable(codebook)
    finite, usable = _is_finite(rows), _is_finite(codes)  # [..., 1], [K, 1]
    zero = op.Constant(value_float=0.0)
    rows = op.Where(finite, rows, op.CastLike(zero, rows))
    codes = op.Where(usable, codes, op.CastLike(zero, codes))
    if precision == "exact":
        rows, codes = op.Cast(rows, to=_DOUBLE), op.Cast(codes, to=_DOUBLE)
    score = op.Neg(op.MatMul(rows, op.Transpose(codes, perm=[1, 0])))  # [..., K]
    if metric == "l2":
        half = op.CastLike(op.Constant(value_float=0.5), codes)
        score = op.Add(score, op.Mul(half, op.ReduceSum(op.Mul(codes, codes), _ints(-1), keepdims=0)))
    infinity = op.CastLike(op.Constant(value_float=float("inf")), score)
    score = op.Where(op.Squeeze(usable, _ints(-1)), score, infinity)
    indices = op.ArgMin(score, axis=-1, keepdims=0, select_last_index=0)
    return op.Where(op.Squeeze(finite, _ints(-1)), indices, _ints(0))


def _nearest_code(
    x: Any, codebook: Any, metric: str, precision: str, channel_dim: int, backend: str | None = None
) -> Any:
    return _search(_rows(x, channel_dim), codebook, metric, precision)


def _gather_codes(codebook: Any, indices: Any, channel_dim: int, backend: str | None = None) -> Any:
    codes = _opset().Gather(codebook, indices, axis=0)
    return _channel_at(codes, channel_dim, len(indices.shape) + 1)


def _code_statistics(
    x: Any,
    indices: Any,
    codebook_size: int,
    channel_dim: int,
    skip_nonfinite: bool,
    backend: str | None = None,
) -> tuple[Any, Any]:
    rows = _rows(x, channel_dim)
    return _statistics(rows, rows, indices, codebook_size, x.shape[channel_dim], skip_nonfinite)


def _statistics(
    rows: Any, summed: Any, indices: Any, codebook_size: int, dim: int, skip_nonfinite: bool
) -> tuple[Any, Any]:
    """Counts of the rows of each code, and sums of what is to be summed of them, both ``[..., D]``."""
    op = _opset()
    counted = op.GreaterOrEqual(indices, _ints(0))  # [...]
    if skip_nonfinite:
        finite = _is_finite(rows)
        counted = op.And(counted, op.Squeeze(finite, _ints(-1)))
        summed = op.Where(finite, summed, op.CastLike(op.Constant(value_float=0.0), summed))
    # Rows left out go to one slot past the codes, which is cut off at the end.
    slots = op.Reshape(op.Where(counted, indices, _ints(codebook_size)), _ints(-1, 1))  # [N, 1]
    ones = op.ConstantOfShape(op.Shape(op.Squeeze(slots, _ints(1))))  # [N] of 0.0
    ones = op.Cast(op.Add(ones, op.Constant(value_float=1.0)), to=_INT64)
    counts = op.Expand(_ints(0), _ints(codebook_size + 1))
    counts = op.ScatterND(counts, slots, ones, reduction="add")
    sums = op.CastLike(op.Expand(op.Constant(value_float=0.0), _ints(codebook_size + 1, dim)), summed)
    sums = op.ScatterND(sums, slots, op.Reshape(summed, _ints(-1, dim)), reduction="add")
    first, last, axis = _ints(0), _ints(codebook_size), _ints(0)
    return op.Slice(counts, first, last, axis), op.Slice(sums, first, last, axis)


def _vector_quantize(x: Any, codebook: Any, mask: Any = None, *values: Any) -> tuple[Any, ...]:
    op = _opset()
    options = QuantizeOptions(*values)
    rows = _rows(x, options.channel_dim)
    indices = _search(rows, codebook, options.metric, options.precision)
    nearest = op.CastLike(op.Gather(codebook, indices, axis=0), rows)  # [..., D]
    zero = op.CastLike(op.Constant(value_float=0.0), rows)
    codes = op.Where(_is_finite(rows), nearest, op.CastLike(op.Constant(value_float=float("nan")), rows))
    error = op.Sub(codes, rows)
    squared = op.Mul(error, error)
    valid_rows = op.Size(indices)
    if mask is not None:
        row_mask = op.Unsqueeze(mask, _ints(-1))
        codes, squared = op.Where(row_mask, codes, zero), op.Where(row_mask, squared, zero)
        indices = op.Where(mask, indices, _ints(-1))
        valid_rows = op.ReduceSum(op.Cast(mask, to=_INT64), keepdims=0)
    dim, size = x.shape[options.channel_dim], codebook.shape[0]
    elements = op.Max(op.Mul(valid_rows, op.Constant(value_int=dim)), op.Constant(value_int=1))
    loss = op.Div(op.ReduceSum(squared, keepdims=0), op.CastLike(elements, squared))
    weight = op.Constant(value_float=options.commitment_weight + options.codebook_weight)
    loss = op.Mul(loss, op.CastLike(weight, loss))
    quantized = op.CastLike(_channel_at(codes, options.channel_dim, len(x.shape)), x)
    if options.statistics:
        summed = rows
        if options.sum_differences:
            nonfinite = op.Or(op.IsNaN(nearest), op.IsInf(nearest))
            summed = op.Sub(rows, op.Where(nonfinite, zero, nearest))
        counts, sums = _statistics(rows, summed, indices, size, dim, True)
    else:
        counts = op.Expand(_ints(0), _ints(0))
        sums = op.Expand(zero, _ints(0, dim))
    copy = codebook if options.keep_codes else op.Slice(codebook, _ints(0), _ints(0), _ints(0))
    return quantized, indices, loss, valid_rows, counts, sums, copy
