"""``gather_codes``: ``out[b, m, :] = codebook[indices[b, m], :]`` through any strides, one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import common
from .launch import Kernel


@Kernel
@triton.jit
def gather_kernel(
    codebook, indices, out, N, M,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_in_range = row < N
    code = tl.load(indices + row, mask=row_in_range, other=0)
    tile = common.row_tile(view=out, row=row, valid=row_in_range, M=M)
    for start in tl.static_range(0, D, BLOCK_DIM):
        d = start + tl.arange(0, BLOCK_DIM)
        e = common.load_codes(codebook=codebook, code=code, valid=row_in_range, d=d, D=D)
        common.store_chunk(tile=tile, d=d, values=e, D=D)


def gather_codes(codebook: Tensor, indices: Tensor, out: Tensor) -> None:
    """``base.Backend.gather_codes``: 4 N D bytes written, the codebook read from the cache."""
    B, M, D = out.shape
    if out.numel() == 0:
        return
    block_dim, block_rows = common.streaming_tile(D)
    gather_kernel[(-(-B * M // block_rows),)](
        codebook,
        indices,
        common.make_view(out),
        B * M,
        M,
        D=D,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        num_warps=4,
        enable_fp_fusion=False,
    )
