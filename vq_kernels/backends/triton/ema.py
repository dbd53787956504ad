"""``ema_update_``: lerp, Laplace smoothing and normalisation in one pass over the codebook.

The smoothing needs the total of all cluster sizes, which are updated in place. A small codebook is
one program's work, in one launch; a large one takes two, the sizes and their total first.
Memory traffic: 16 K D bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import FLOAT32_MAX, next_power_of_2
from .launch import Kernel

# Elements of the codebook up to which one program does everything (a few iterations of its loop).
ONE_PROGRAM = 1 << 15
_TILE = 8192
_SIZES = 1024
SHORTEST = tl.constexpr(2.0**-100)


@triton.jit
def lerp(a, b, weight):
    """a towards b by weight, exact at both ends, as torch.lerp."""
    weights = tl.full(a.shape, weight, tl.float32)
    return tl.where(weights < 0.5, tl.fma(weights, b - a, a), tl.fma(1.0 - weights, a - b, b))


@triton.jit
def nonfinite(values, in_bounds):
    """Whether a row of ``[BLOCK_CODES, PADDED_D]`` holds NaN or infinity."""
    return tl.max((in_bounds & ~(tl.abs(values) <= FLOAT32_MAX)).to(tl.int32), 1) > 0


@triton.jit
def new_total(cluster_size, counts, weight, K, BLOCK: tl.constexpr):
    """(sum of the new cluster sizes, sum of the counts)."""
    total = tl.zeros((BLOCK,), tl.float32)
    counted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        count = tl.load(counts + k, mask=k < K, other=0).to(tl.float32)
        size = lerp(tl.load(cluster_size + k, mask=k < K, other=0.0), count, weight)
        total += tl.where(k < K, size, 0.0)
        counted += count
    return tl.sum(total), tl.sum(counted)


@Kernel
@triton.jit
def sizes_kernel(cluster_size, counts, totals, weight, K, BLOCK: tl.constexpr):
    total, counted = new_total(cluster_size=cluster_size, counts=counts, weight=weight, K=K, BLOCK=BLOCK)
    tl.store(totals, total)
    tl.store(totals + 1, counted)


@Kernel
@triton.jit
def ema_kernel(
    codebook, cluster_size, embed_avg, counts, sums, totals, weight, eps, K,
    D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK_CODES: tl.constexpr, SIZES: tl.constexpr,
    ALONE: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    if ALONE:
        total, counted = new_total(cluster_size=cluster_size, counts=counts, weight=weight, K=K, BLOCK=SIZES)
        tl.debug_barrier()
    else:
        total = tl.load(totals)
        counted = tl.load(totals + 1)
    if counted > 0:
        d = tl.arange(0, PADDED_D)
        for first_code in range(tl.program_id(0) * BLOCK_CODES, K, tl.num_programs(0) * BLOCK_CODES):
            k = first_code + tl.arange(0, BLOCK_CODES)
            size = lerp(
                tl.load(cluster_size + k, mask=k < K, other=0.0),
                tl.load(counts + k, mask=k < K, other=0).to(tl.float32),
                weight,
            )
            smoothed = (size + eps) / (total + K * eps) * total
            at = k.to(tl.int64)[:, None] * D + d[None, :]
            in_bounds = (k < K)[:, None] & (d < D)[None, :]
            before = tl.load(embed_avg + at, mask=in_bounds, other=0.0)
            average = lerp(before, tl.load(sums + at, mask=in_bounds, other=0.0), weight)
            if NORMALIZE:
                wide = average.to(tl.float64)  # squares of small averages are 0 in float32
                length = tl.sqrt(tl.sum(tl.where(in_bounds, wide * wide, 0.0), 1))
                # An average that is too short to have a direction leaves the code as it is.
                has_direction = length >= SHORTEST
                code = (wide / tl.where(has_direction, length, 1.0)[:, None]).to(tl.float32)
                overflows = nonfinite(average, in_bounds)
            else:
                code = average / smoothed[:, None]
                has_direction = k < K
                overflows = nonfinite(code, in_bounds)
            # float32 cannot hold its average: the code takes no part.
            moves = (k < K) & ~(overflows & ~nonfinite(before, in_bounds))
            # The compiler may load the sizes once for each layout that it wants them in.
            tl.debug_barrier()
            tl.store(cluster_size + k, size, mask=moves)
            tl.store(embed_avg + at, average, mask=in_bounds & moves[:, None])
            written = in_bounds & (moves & has_direction)[:, None]
            tl.store(codebook + at, code.to(codebook.dtype.element_ty), mask=written)


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
    """``base.Backend.ema_update_``: one launch up to ``ONE_PROGRAM`` elements, else two."""
    K, D = codebook.shape
    if K == 0 or D == 0:
        return
    alone = K * D <= ONE_PROGRAM
    padded_d = next_power_of_2(D)
    codes = max(1, _TILE // padded_d)
    totals = torch.empty(0 if alone else 2, dtype=torch.float32, device=codebook.device)
    weight = 1.0 - decay
    if not alone:
        sizes_kernel[(1,)](
            cluster_size, counts, totals, weight, K, BLOCK=_SIZES, num_warps=8, enable_fp_fusion=False
        )
    ema_kernel[(1 if alone else -(-K // codes),)](
        codebook,
        cluster_size,
        embed_avg,
        counts,
        sums,
        totals,
        weight,
        eps,
        K,
        D=D,
        PADDED_D=padded_d,
        BLOCK_CODES=codes,
        SIZES=_SIZES,
        ALONE=alone,
        NORMALIZE=normalize,
        num_warps=8,
        enable_fp_fusion=False,
    )
