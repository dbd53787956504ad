"""``vector_quantize_backward``: gradient of the straight-through or rotated estimator, one launch.

    out = through(g) + pull (x - e),   pull = grad_loss * scale / valid_rows

Memory traffic: x and g read once (again where D is more than one chunk), out written once, codes
from the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import common


@triton.jit
def load_rows(x, offset, keep, d, stride_d, D: tl.constexpr):
    """A chunk of rows in float32, zero outside."""
    inside = keep[:, None] & (d < D)[None, :]
    return tl.load(x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=inside, other=0.0).to(
        tl.float32
    )


@triton.jit
def load_codes(codebook, index, keep, d, D: tl.constexpr):
    inside = keep[:, None] & (d < D)[None, :]
    return tl.load(codebook + index[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def quotients(rows, norms):
    """Rows over one number each, correctly rounded."""
    return tl.div_rn(rows, tl.broadcast_to(norms[:, None], rows.shape))


@triton.jit
def backward_kernel(
    grad, grad_loss, x, codebook, indices, valid_rows, out, scale, N, M,
    grad_b, grad_m, grad_d, stride_b, stride_m, stride_d, out_b, out_m, out_d,
    D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr,
    HAS_GRAD: tl.constexpr, HAS_LOSS: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    there = row < N
    index = tl.load(indices + row, mask=there, other=-1)
    keep = index >= 0
    offset = common.row_offset(row, M, stride_b, stride_m)
    grad_offset = common.row_offset(row, M, grad_b, grad_m)
    out_offset = common.row_offset(row, M, out_b, out_m)
    if HAS_LOSS:
        rows = tl.maximum(tl.load(valid_rows), 1).to(tl.float32)
        pull = tl.div_rn(tl.load(grad_loss).to(tl.float32) * scale, rows)
    if HAS_GRAD and ROTATE:
        x_square = tl.zeros((BN,), tl.float32)
        e_square = tl.zeros((BN,), tl.float32)
        g_x = tl.zeros((BN,), tl.float32)
        g_e = tl.zeros((BN,), tl.float32)
        for start in tl.static_range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            v = load_rows(x, offset, keep, d, stride_d, D)
            e = load_codes(codebook, index, keep, d, D)
            g = load_rows(grad, grad_offset, keep, d, grad_d, D)
            x_square += tl.sum(v * v, 1)
            e_square += tl.sum(e * e, 1)
            g_x += tl.sum(g * v, 1)
            g_e += tl.sum(g * e, 1)
        # Correctly rounded roots and quotients: opposite directions must cancel in u + q.
        x_norm = tl.maximum(tl.sqrt_rn(x_square), 1e-6)
        e_norm = tl.sqrt_rn(e_square)
        q_norm = tl.maximum(e_norm, 1e-6)
        w_square = tl.zeros((BN,), tl.float32)
        for start in tl.static_range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            w = quotients(load_rows(x, offset, keep, d, stride_d, D), x_norm)
            w += quotients(load_codes(codebook, index, keep, d, D), q_norm)
            w_square += tl.sum(w * w, 1)
        w_norm = tl.maximum(tl.sqrt_rn(w_square), 1e-6)
        g_q = tl.div_rn(g_e, q_norm)
        g_w = tl.div_rn(tl.div_rn(g_x, x_norm) + g_q, w_norm)
        length = tl.div_rn(e_norm, x_norm)
    for start in tl.static_range(0, D, CHUNK):
        d = start + tl.arange(0, CHUNK)
        result = tl.zeros((BN, CHUNK), tl.float32)
        if HAS_LOSS or ROTATE:
            v = load_rows(x, offset, keep, d, stride_d, D)
            e = load_codes(codebook, index, keep, d, D)
        if HAS_GRAD:
            result = load_rows(grad, grad_offset, keep, d, grad_d, D)
            if ROTATE:
                u = quotients(v, x_norm)
                w = quotients(u + quotients(e, q_norm), w_norm)
                result = length[:, None] * (result - 2 * g_w[:, None] * w + 2 * g_q[:, None] * u)
        if HAS_LOSS:
            result += pull * (v - e)
        result = tl.where(keep[:, None], result, 0.0)
        at = out + out_offset[:, None] + d.to(tl.int64)[None, :] * out_d
        tl.store(at, result.to(out.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])


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
    """``base.Backend.vector_quantize_backward``."""
    B, M, D = x.shape
    if x.numel() == 0:
        return
    chunk, rows = common.row_tile(D)
    backward_kernel[(-(-B * M // rows),)](
        grad_quantized,
        grad_loss,
        x,
        codebook,
        indices,
        valid_rows,
        out,
        scale,
        B * M,
        M,
        *(common.strides(x) if grad_quantized is None else common.strides(grad_quantized)),
        *common.strides(x),
        *common.strides(out),
        D=D,
        CHUNK=chunk,
        BN=rows,
        HAS_GRAD=grad_quantized is not None,
        HAS_LOSS=grad_loss is not None,
        ROTATE=gradient == "rotation_trick",
        num_warps=4,
    )
