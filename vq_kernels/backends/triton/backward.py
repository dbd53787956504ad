"""``vector_quantize_backward``: gradient of the straight-through or rotated estimator, one launch.

    out = estimator_grad(g) + loss_grad (x - e),   loss_grad = grad_loss * scale / valid_rows

Memory traffic: x and g read once (again where D is more than one chunk), out written once, codes
from the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import common
from .launch import Kernel


@triton.jit
def quotients(rows, norms):
    """Rows over one number each, correctly rounded."""
    return tl.div_rn(rows, tl.broadcast_to(norms[:, None], rows.shape))


@Kernel
@triton.jit
def backward_kernel(
    grad, grad_loss, x, codebook, indices, valid_rows, out, scale, N, M, K,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    HAS_GRAD: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_in_range = row < N
    index = tl.load(indices + row, mask=row_in_range, other=-1)
    valid = (index >= 0) & (index < K)
    x_tile = common.row_tile(view=x, row=row, valid=valid, M=M)
    out_tile = common.row_tile(view=out, row=row, valid=row_in_range, M=M)
    if HAS_GRAD:
        grad_tile = common.row_tile(view=grad, row=row, valid=valid, M=M)
    if grad_loss is not None:
        rows = tl.maximum(tl.load(valid_rows), 1).to(tl.float32)
        loss_grad = tl.div_rn(tl.load(grad_loss).to(tl.float32) * scale, rows)
    if ROTATE:
        x_square = tl.zeros((BLOCK_ROWS,), tl.float32)
        e_square = tl.zeros((BLOCK_ROWS,), tl.float32)
        g_x = tl.zeros((BLOCK_ROWS,), tl.float32)
        g_e = tl.zeros((BLOCK_ROWS,), tl.float32)
        for start in tl.static_range(0, D, BLOCK_DIM):
            d = start + tl.arange(0, BLOCK_DIM)
            v = common.load_chunk(tile=x_tile, d=d, D=D).to(tl.float32)
            e = common.load_codes(codebook=codebook, code=index, valid=valid, d=d, D=D)
            g = common.load_chunk(tile=grad_tile, d=d, D=D).to(tl.float32)
            x_square += tl.sum(v * v, 1)
            e_square += tl.sum(e * e, 1)
            g_x += tl.sum(g * v, 1)
            g_e += tl.sum(g * e, 1)
        # Correctly rounded roots and quotients: opposite directions must cancel in u + q.
        x_norm = tl.maximum(tl.sqrt_rn(x_square), 1e-6)
        e_norm = tl.sqrt_rn(e_square)
        q_norm = tl.maximum(e_norm, 1e-6)
        w_square = tl.zeros((BLOCK_ROWS,), tl.float32)
        for start in tl.static_range(0, D, BLOCK_DIM):
            d = start + tl.arange(0, BLOCK_DIM)
            v = common.load_chunk(tile=x_tile, d=d, D=D).to(tl.float32)
            e = common.load_codes(codebook=codebook, code=index, valid=valid, d=d, D=D)
            w = quotients(rows=v, norms=x_norm) + quotients(rows=e, norms=q_norm)
            w_square += tl.sum(w * w, 1)
        w_norm = tl.maximum(tl.sqrt_rn(w_square), 1e-6)
        g_q = tl.div_rn(g_e, q_norm)
        g_w = tl.div_rn(tl.div_rn(g_x, x_norm) + g_q, w_norm)
        length = tl.div_rn(e_norm, x_norm)
    for start in tl.static_range(0, D, BLOCK_DIM):
        d = start + tl.arange(0, BLOCK_DIM)
        result = tl.zeros((BLOCK_ROWS, BLOCK_DIM), tl.float32)
        if grad_loss is not None or ROTATE:
            v = common.load_chunk(tile=x_tile, d=d, D=D).to(tl.float32)
            e = common.load_codes(codebook=codebook, code=index, valid=valid, d=d, D=D)
        if HAS_GRAD:
            result = common.load_chunk(tile=grad_tile, d=d, D=D).to(tl.float32)
            if ROTATE:
                u = quotients(rows=v, norms=x_norm)
                w = quotients(rows=u + quotients(rows=e, norms=q_norm), norms=w_norm)
                result = length[:, None] * (result - 2 * g_w[:, None] * w + 2 * g_q[:, None] * u)
        if grad_loss is not None:
            result += loss_grad * (v - e)
        # Zero where the mask left a row out; NaN where something has written to its index since.
        result = tl.where(valid[:, None], result, tl.where(index == -1, 0.0, float("nan"))[:, None])
        common.store_chunk(tile=out_tile, d=d, values=result, D=D)


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
    block_dim, block_rows = common.streaming_tile(D)
    backward_kernel[(-(-B * M // block_rows),)](
        None if grad_quantized is None else common.make_view(grad_quantized),
        grad_loss,
        common.make_view(x),
        codebook,
        indices,
        valid_rows,
        common.make_view(out),
        scale,
        B * M,
        M,
        codebook.shape[0],
        D=D,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        HAS_GRAD=grad_quantized is not None,
        ROTATE=grad_quantized is not None and gradient == "rotation_trick",
        num_warps=4,
        enable_fp_fusion=False,
    )
