"""``vector_quantize``: search, gather, squared error and statistics in four launches.

1. prepare the codebook, copy it where asked to, and zero the counters (``prepare.py``);
2. search (``search.py``), which also finds the largest |x|;
3. settle the open rows and, for every row, write the code, the squared error and, into integer
   accumulators, the statistics: x is read a second time, while nothing else of size N x D but the
   output exists;
4. convert the sums to float32 and add up the squared error, in an order that N alone fixes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import QuantizeOptions, QuantizeResult
from . import common
from .common import FLOAT32_MAX
from .nearest import search, settle_programs
from .rescore import CANDIDATES, TILE, settle
from .statistics import (
    HEADER,
    TICKET,
    VALID,
    accumulators,
    add_rows,
    convert,
    copies,
    row_bits,
    unit_exponent,
)

# Rows whose errors one program of the last kernel adds up.
ERROR_BLOCK = 1 << 15


@triton.jit
def write_rows(
    x, codebook, out, index_out, error, scratch, counts, copy, exponent, row, there, index,
    M, K, stride_b, stride_m, stride_d, out_b, out_m, out_d,
    D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Code, squared error and statistics of rows whose index is known; -1 marks a masked row."""
    keep = there & (index >= 0)
    code = tl.where(keep, index, 0).to(tl.int64)
    offset = common.row_offset(row, M, stride_b, stride_m)
    out_offset = common.row_offset(row, M, out_b, out_m)
    nonfinite = tl.zeros((BN,), tl.int32)
    for start in tl.static_range(0, D, CHUNK):
        d = start + tl.arange(0, CHUNK)
        at = x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d
        v = tl.load(at, mask=keep[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(v) <= FLOAT32_MAX, 0, 1), 1))
    finite = nonfinite == 0
    squared = tl.zeros((BN,), tl.float32)
    for start in tl.static_range(0, D, CHUNK):
        d = start + tl.arange(0, CHUNK)
        inside = keep[:, None] & (d < D)[None, :]
        at = x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d
        v = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(codebook + code[:, None] * D + d[None, :], mask=inside, other=0.0).to(tl.float32)
        e = tl.where(keep[:, None] & (finite == 0)[:, None], float("nan"), e)
        difference = tl.where(inside, e - v, 0.0)
        squared += tl.sum(difference * difference, 1)
        at = out + out_offset[:, None] + d.to(tl.int64)[None, :] * out_d
        tl.store(at, e.to(out.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])
        if STATISTICS:
            add_rows(scratch, counts, copy, exponent, code, keep & finite, v, d, K, start == 0, D)
    tl.store(error + row, squared, mask=there)
    tl.store(index_out + row, index, mask=there)


@triton.jit
def write_kernel(
    x, codebook, high, low, bias, center, extremes, square_high, square_low, candidates, mask,
    value_in, index_in, second_in, bound_in, ambiguous, threshold,
    out, index_out, error, scratch, counts, row_bits,
    N, M, K, padded_k, stride_b, stride_m, stride_d, out_b, out_m, out_d,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CODE_PARTS: tl.constexpr, CENTERED: tl.constexpr,
    L2: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr, SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr, DELTA: tl.constexpr,
    ROW_CHUNK: tl.constexpr, BN: tl.constexpr, STATISTICS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    exponent = tl.zeros((), tl.int32)
    if STATISTICS:
        exponent = unit_exponent(scratch, row_bits)
    copy = pid % COPIES
    if EXACT or SPLITS > 1:
        candidate = candidates + pid * TILE * CANDIDATES
        count = tl.load(scratch).to(tl.int32)
        if SPLITS > 1:
            count = count * 0 + N
        for start in range(pid * TILE, count, tl.num_programs(0) * TILE):
            row, there, index = settle(
                x, codebook, high, low, bias, center, extremes, square_high, square_low, candidate, mask,
                value_in, index_in, second_in, bound_in, ambiguous, threshold, count, start,
                N, M, K, padded_k, stride_b, stride_m, stride_d,
                D, PADDED_D, CHUNK, RESIDENT, BK, SPLIT, PARTS, CODE_PARTS, CENTERED, L2, EXACT, HAS_MASK,
                SPLITS, INTERPRETED, DELTA,
            )  # fmt: skip
            if HAS_MASK and SPLITS > 1:
                tl.atomic_add(scratch + VALID, tl.sum((there & (index >= 0)).to(tl.int64)), sem="relaxed")
            write_rows(
                x, codebook, out, index_out, error, scratch, counts, copy, exponent, row, there, index,
                M, K, stride_b, stride_m, stride_d, out_b, out_m, out_d,
                D, ROW_CHUNK, TILE, STATISTICS,
            )  # fmt: skip
    if SPLITS == 1:
        for tile in range(pid, tl.cdiv(N, BN), tl.num_programs(0)):
            row = tile * BN + tl.arange(0, BN).to(tl.int64)
            index = tl.load(index_in + row, mask=row < N, other=-2)
            # Open rows (-2) belong to the loop above, whichever program it runs in.
            if HAS_MASK:
                valid = ((row < N) & (index != -1)).to(tl.int64)
                tl.atomic_add(scratch + VALID, tl.sum(valid), sem="relaxed")
            write_rows(
                x, codebook, out, index_out, error, scratch, counts, copy, exponent, row, index > -2, index,
                M, K, stride_b, stride_m, stride_d, out_b, out_m, out_d,
                D, ROW_CHUNK, BN, STATISTICS,
            )  # fmt: skip


@triton.jit
def finish_kernel(
    error, partial, mse, valid_rows, scratch, sums, row_bits, N, size, D,
    HAS_MASK: tl.constexpr, STATISTICS: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr,
    ERROR_BLOCK: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The last program to arrive adds the partial errors, always in the same order."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    if STATISTICS:
        exponent = unit_exponent(scratch, row_bits)
        for start in range(pid * BLOCK, size, programs * BLOCK):
            convert(scratch, sums, exponent, size, start, COPIES, BLOCK)
    blocks = tl.cdiv(N, ERROR_BLOCK)
    for block in range(pid, blocks, programs):
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, ERROR_BLOCK, BLOCK):
            row = block * ERROR_BLOCK + start + tl.arange(0, BLOCK).to(tl.int64)
            total += tl.load(error + row, mask=row < N, other=0.0).to(tl.float64)
        tl.store(partial + block, tl.sum(total))
    tl.debug_barrier()
    arrived = tl.atomic_add(scratch + TICKET, 1, sem="acq_rel")
    if arrived == programs - 1:
        line = tl.arange(0, LINES)
        total = tl.sum(tl.load(partial + line, mask=line < blocks, other=0.0, cache_modifier=".cg"))
        valid = tl.zeros((), tl.int64) + N
        if HAS_MASK:
            valid = tl.load(scratch + VALID)
        tl.store(valid_rows, valid)
        elements = tl.maximum(valid * D, 1).to(tl.float64)
        tl.store(mse, (total / elements).to(tl.float32))


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    options: QuantizeOptions,
    quantized: Tensor,
    codebook_copy: Tensor | None,
) -> QuantizeResult:
    """``base.Backend.vector_quantize``."""
    statistics = options.statistics
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    device = x.device
    listed = K if statistics else 0
    if N == 0:
        if codebook_copy is not None:
            codebook_copy.copy_(codebook)
        return QuantizeResult(
            quantized,
            torch.empty((B, M), dtype=torch.int64, device=device),
            torch.zeros((), dtype=torch.float32, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
            torch.zeros(listed, dtype=torch.int64, device=device),
            torch.zeros((listed, D), dtype=torch.float32, device=device),
            codebook_copy,
        )
    number_of_copies = copies(K, D)
    header = int(HEADER.value)
    scratch = torch.empty(accumulators(K, D) if statistics else header, dtype=torch.int64, device=device)
    counts = torch.empty(listed, dtype=torch.int64, device=device)
    found = search(
        x,
        codebook,
        mask,
        options.metric,
        options.precision,
        scratch=scratch,
        counts=counts,
        kept=codebook_copy,
        measure_range=statistics,
    )
    indices = torch.empty((B, M), dtype=torch.int64, device=device)
    error = torch.empty(N, dtype=torch.float32, device=device)
    chunk, rows = common.row_tile(D)
    programs = max(settle_programs(N, device), min(4 * common.multiprocessors(device), -(-N // rows)))
    stride_b, stride_m, stride_d = common.strides(x)
    out_b, out_m, out_d = common.strides(quantized)
    write_kernel[(programs,)](
        x,
        codebook,
        candidates=torch.empty(programs * TILE.value * CANDIDATES.value, dtype=torch.int32, device=device),
        mask=mask,
        out=quantized,
        index_out=indices,
        error=error,
        scratch=scratch,
        counts=counts,
        row_bits=row_bits(N),
        N=N,
        M=M,
        K=K,
        stride_b=stride_b,
        stride_m=stride_m,
        stride_d=stride_d,
        out_b=out_b,
        out_m=out_m,
        out_d=out_d,
        D=D,
        HAS_MASK=mask is not None,
        INTERPRETED=common.interpreted(),
        ROW_CHUNK=chunk,
        BN=rows,
        STATISTICS=statistics,
        COPIES=number_of_copies,
        num_warps=4,
        enable_fp_fusion=False,
        **found.settle_arguments(),
    )
    blocks = -(-N // ERROR_BLOCK)
    sums = torch.empty((listed, D), dtype=torch.float32, device=device)
    mse = torch.empty((), dtype=torch.float32, device=device)
    valid_rows = torch.empty((), dtype=torch.int64, device=device)
    programs = max(1, min(4 * common.multiprocessors(device), max(blocks, -(-listed * D // 1024))))
    finish_kernel[(programs,)](
        error,
        torch.empty(blocks, dtype=torch.float64, device=device),
        mse,
        valid_rows,
        scratch,
        sums,
        row_bits(N),
        N,
        listed * D,
        D,
        HAS_MASK=mask is not None,
        STATISTICS=statistics,
        COPIES=number_of_copies,
        BLOCK=1024,
        ERROR_BLOCK=ERROR_BLOCK,
        LINES=triton.next_power_of_2(blocks),
        num_warps=4,
    )
    loss = mse if options.loss_weight == 1.0 else mse * options.loss_weight
    return QuantizeResult(quantized, indices, loss, valid_rows, counts, sums, codebook_copy)
