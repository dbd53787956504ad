"""``gather_codes``: ``out[b, m, :] = codebook[indices[b, m], :]`` through any strides, one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import common


@triton.jit
def gather_kernel(
    codebook, indices, out, N, M, stride_b, stride_m, stride_d,
    D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    there = row < N
    index = tl.load(indices + row, mask=there, other=0)
    offset = common.row_offset(row, M, stride_b, stride_m)
    for start in tl.static_range(0, D, CHUNK):
        d = start + tl.arange(0, CHUNK)
        inside = there[:, None] & (d < D)[None, :]
        e = tl.load(codebook + index[:, None] * D + d[None, :], mask=inside, other=0.0)
        tl.store(out + offset[:, None] + d.to(tl.int64)[None, :] * stride_d, e, mask=inside)


def gather_codes(codebook: Tensor, indices: Tensor, out: Tensor) -> None:
    """``base.Backend.gather_codes``: 4 N D bytes written, the codebook read from the cache."""
    B, M, D = out.shape
    if out.numel() == 0:
        return
    chunk, rows = common.row_tile(D)
    gather_kernel[(-(-B * M // rows),)](
        codebook, indices, out, B * M, M, *common.strides(out), D=D, CHUNK=chunk, BN=rows, num_warps=4
    )
