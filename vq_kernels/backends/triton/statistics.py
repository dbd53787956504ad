"""Deterministic counts and sums of the rows of each code.

Integer addition has no order, so atomics on integers give the same bits in every run. Sums are kept
in fixed point, 64 bits wide: with A the largest |x| and n the number of rows, one unit is
2^(ceil log2 A + ceil log2 (n + 1) - 62), so that no sum can overflow and each row adds at most one
unit of error: 2^-41 A at a million rows, less than float32 addition in any order would. Every row
costs D atomics; they meet in the L2 cache.

The rule over (N, K, D): the accumulators exist in ``copies(K, D)`` copies, more for small K D, so that
programs that add to the same code at once rarely meet at the same address. Memory: 8 K D bytes a
copy, at most 512 KiB beyond the first.

Three launches: zero and find A, accumulate, convert. ``vector_quantize`` folds the first into its
search and the second into its gather.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import FLOAT32_MAX

# Slots of the int64 scratch before the accumulators.
RANGE = tl.constexpr(1)
VALID = tl.constexpr(2)
TICKET = tl.constexpr(3)
HEADER = tl.constexpr(4)


def copies(codebook_size: int, dim: int) -> int:
    """Copies of the accumulators: 8 while they fit 64 Ki entries together, then fewer, in powers of two."""
    fitting = (1 << 16) // max(1, codebook_size * dim)
    return 1 << (max(1, min(8, fitting)).bit_length() - 1)


def accumulators(codebook_size: int, dim: int) -> int:
    """Entries of the int64 scratch: header and accumulators."""
    return int(HEADER.value) + copies(codebook_size, dim) * codebook_size * dim


def row_bits(rows: int) -> int:
    return rows.bit_length()


@triton.jit
def unit_exponent(scratch, row_bits):
    """log2 of one unit of the fixed-point sums."""
    largest = tl.load(scratch + RANGE).to(tl.int32).to(tl.float32, bitcast=True)
    return common.exponent_of(largest) + 1 + row_bits - 62


@triton.jit
def power_of_two64(e):
    """2^e as float64 for -1022 <= e <= 1023."""
    return ((e + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def add_rows(scratch, counts, copy, exponent, index, keep, v, d, K, FIRST: tl.constexpr, D: tl.constexpr):
    """Add a chunk ``v`` of rows ``[rows, CHUNK]`` to the sums, with the FIRST also the rows to the counts."""
    code = index.to(tl.int64)
    if FIRST:
        tl.atomic_add(counts + code, keep.to(tl.int64), mask=keep, sem="relaxed")
    units = (tl.where(keep[:, None], v, 0.0).to(tl.float64) * power_of_two64(-exponent)).to(tl.int64)
    at = scratch + HEADER + (copy * K + code)[:, None] * D + d[None, :]
    tl.atomic_add(at, units, mask=keep[:, None] & (d < D)[None, :], sem="relaxed")


@triton.jit
def range_kernel(
    x, indices, counts, scratch, partial, scratch_size, N, M, K, stride_b, stride_m, stride_d,
    D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Zero the accumulators; the largest finite |x| of each program's rows."""
    common.zero(counts, K, 1024)
    common.zero(scratch, scratch_size, 1024)
    largest = tl.zeros((), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(N, BN), tl.num_programs(0)):
        row = tile * BN + tl.arange(0, BN).to(tl.int64)
        there = row < N
        keep = tl.load(indices + row, mask=there, other=-1) >= 0
        offset = common.row_offset(row, M, stride_b, stride_m)
        for start in tl.static_range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            inside = keep[:, None] & (d < D)[None, :]
            at = x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d
            v = tl.abs(tl.load(at, mask=inside, other=0.0).to(tl.float32))
            largest = tl.maximum(largest, tl.max(tl.where(v <= FLOAT32_MAX, v, 0.0)))
    tl.store(partial + tl.program_id(0), largest)


@triton.jit
def accumulate_kernel(
    x, indices, counts, scratch, partial, partials, row_bits, N, M, K, stride_b, stride_m, stride_d,
    D: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, LINES: tl.constexpr, COPIES: tl.constexpr,
    SKIP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    line = tl.arange(0, LINES)
    largest = tl.max(tl.load(partial + line, mask=line < partials, other=0.0))
    if pid == 0:
        tl.store(scratch + RANGE, largest.to(tl.int32, bitcast=True).to(tl.int64))
    exponent = common.exponent_of(largest) + 1 + row_bits - 62
    for tile in range(pid, tl.cdiv(N, BN), tl.num_programs(0)):
        row = tile * BN + tl.arange(0, BN).to(tl.int64)
        there = row < N
        index = tl.load(indices + row, mask=there, other=-1)
        keep = index >= 0
        offset = common.row_offset(row, M, stride_b, stride_m)
        nonfinite = tl.zeros((BN,), tl.int32)
        if SKIP:
            for start in tl.static_range(0, D, CHUNK):
                d = start + tl.arange(0, CHUNK)
                at = x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d
                v = tl.load(at, mask=keep[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
                nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(v) <= FLOAT32_MAX, 0, 1), 1))
            keep = keep & (nonfinite == 0)
        for start in tl.static_range(0, D, CHUNK):
            d = start + tl.arange(0, CHUNK)
            at = x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d
            v = tl.load(at, mask=keep[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            add_rows(scratch, counts, pid % COPIES, exponent, index, keep, v, d, K, start == 0, D)


@triton.jit
def convert(scratch, sums, exponent, size, start, COPIES: tl.constexpr, BLOCK: tl.constexpr):
    """A block of the fixed-point sums in float32."""
    i = start + tl.arange(0, BLOCK).to(tl.int64)
    inside = i < size
    total = tl.zeros((BLOCK,), tl.int64)
    for copy in tl.static_range(COPIES):
        total += tl.load(scratch + HEADER + copy * size + i, mask=inside, other=0)
    value = total.to(tl.float64) * power_of_two64(exponent)
    tl.store(sums + i, value.to(tl.float32), mask=inside)


@triton.jit
def convert_kernel(scratch, sums, row_bits, size, COPIES: tl.constexpr, BLOCK: tl.constexpr):
    convert(
        scratch,
        sums,
        unit_exponent(scratch, row_bits),
        size,
        tl.program_id(0).to(tl.int64) * BLOCK,
        COPIES,
        BLOCK,
    )


def code_statistics(
    x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    """``base.Backend.code_statistics``. Reads x twice."""
    B, M, D = x.shape
    N, K = B * M, codebook_size
    device = x.device
    if N == 0 or K == 0:
        return (
            torch.zeros(K, dtype=torch.int64, device=device),
            torch.zeros((K, D), dtype=torch.float32, device=device),
        )
    counts = torch.empty(K, dtype=torch.int64, device=device)
    sums = torch.empty((K, D), dtype=torch.float32, device=device)
    scratch = torch.empty(accumulators(K, D), dtype=torch.int64, device=device)
    chunk, rows = common.row_tile(D)
    programs = max(1, min(4 * common.multiprocessors(device), -(-N // rows)))
    partial = torch.empty(programs, dtype=torch.float32, device=device)
    tile = {"D": D, "CHUNK": chunk, "BN": rows, "num_warps": 4}
    where = (N, M, K, *common.strides(x))
    range_kernel[(programs,)](x, indices, counts, scratch, partial, scratch.numel(), *where, **tile)
    accumulate_kernel[(programs,)](
        x,
        indices,
        counts,
        scratch,
        partial,
        programs,
        row_bits(N),
        *where,
        LINES=triton.next_power_of_2(programs),
        COPIES=copies(K, D),
        SKIP=skip_nonfinite,
        **tile,
    )
    block = 1024
    convert_kernel[(-(-K * D // block),)](
        scratch, sums, row_bits(N), K * D, COPIES=copies(K, D), BLOCK=block, num_warps=4
    )
    return counts, sums
