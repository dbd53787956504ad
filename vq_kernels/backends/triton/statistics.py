"""Deterministic counts and sums of the rows of each code.

Integer addition has no order, so atomics on integers give the same bits in every run. Sums are kept
in fixed point, 64 bits wide: with A the largest |x| and n the number of rows, one unit is
2^(ceil log2 A + ceil log2 (n + 1) - 62), so that no sum can overflow and each row adds at most one
unit of error: 2^-41 A at a million rows, less than float32 addition in any order would. Every row
costs D atomics; they meet in the L2 cache.

Differences x - e are summed as x - e', e' being the code cut off at A in magnitude, so that |x - e'| is
at most 2 A whatever the codes are; n (e' - e) is added in the end. It has the sign of the sum: nothing
cancels. Rows and codes near to each other lose nothing: the unit is finer than the spacing of x by 2^15.

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
from .common import FLOAT32_MAX, HEADER, RANGE_SLOT
from .launch import Kernel


def copies(codebook_size: int, dim: int) -> int:
    """Copies of the accumulators: 8 while they fit 64 Ki entries together, then fewer, in powers of two."""
    fitting = (1 << 16) // max(1, codebook_size * dim)
    return 1 << (max(1, min(8, fitting)).bit_length() - 1)


def accumulators(codebook_size: int, dim: int) -> int:
    """Number of int64 accumulators."""
    return copies(codebook_size, dim) * codebook_size * dim


def row_bits(rows: int, differences: bool = False) -> int:
    """Bits by which the sum of so many rows, or of their differences x - e', may outgrow the largest |x|."""
    return rows.bit_length() + differences


@triton.jit
def unit_exponent(largest, row_bits):
    """log2 of one unit of the fixed-point sums, for rows of which ``largest`` is the largest |x|."""
    return common.exponent_of(largest) + 1 + row_bits - 62


@triton.jit
def stored_largest(counters):
    """The largest |x| that an earlier kernel found."""
    return tl.load(counters + RANGE_SLOT).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def cut_off(codes, largest):
    """Codes whose entries are at most ``largest`` in magnitude; 0 for those that are not finite."""
    inside = tl.minimum(tl.maximum(codes, -largest), largest)
    return tl.where(tl.abs(codes) <= FLOAT32_MAX, inside, 0.0)


@triton.jit
def power_of_two64(e):
    """2^e as float64 for -1022 <= e <= 1023."""
    return ((e + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def add_rows(sums, counts, exponent, code, valid, v, d, FIRST: tl.constexpr, D: tl.constexpr):
    """Add a chunk ``v`` of rows ``[BLOCK_ROWS, BLOCK_DIM]`` to the fixed-point sums of their codes.

    ``sums`` is one copy of the accumulators; with the FIRST chunk rows are added to the counts too.
    """
    if FIRST:
        tl.atomic_add(counts + code, valid.to(tl.int64), mask=valid, sem="relaxed")
    units = (tl.where(valid[:, None], v, 0.0).to(tl.float64) * power_of_two64(-exponent)).to(tl.int64)
    at = sums + code[:, None] * D + d[None, :]
    tl.atomic_add(at, units, mask=valid[:, None] & (d < D)[None, :], sem="relaxed")


@Kernel
@triton.jit
def range_kernel(
    x, indices, counts, accumulators, partial, accumulators_size, N, M, K,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Zero the accumulators; the largest finite |x| of each program's rows."""
    common.fill(target=counts, size=K, value=0, BLOCK=1024)
    common.fill(target=accumulators, size=accumulators_size, value=0, BLOCK=1024)
    largest = tl.zeros((), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, BLOCK_ROWS), tl.num_programs(0)):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        code = tl.load(indices + row, mask=row < N, other=-1)
        valid = (code >= 0) & (code < K)
        tile = common.row_tile(view=x, row=row, valid=valid, M=M)
        for start in tl.static_range(0, D, BLOCK_DIM):
            v = common.load_chunk(tile=tile, d=start + tl.arange(0, BLOCK_DIM), D=D)
            v = tl.abs(v.to(tl.float32))
            largest = tl.maximum(largest, tl.max(tl.where(v <= FLOAT32_MAX, v, 0.0)))
    tl.store(partial + tl.program_id(0), largest)


@Kernel
@triton.jit
def accumulate_kernel(
    x, indices, counts, counters, accumulators, partial, partials, row_bits, N, M, K,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, PADDED_PROGRAMS: tl.constexpr,
    COPIES: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """Counts and fixed-point sums; SKIP leaves out rows that hold NaN or infinity."""
    pid = tl.program_id(0)
    line = tl.arange(0, PADDED_PROGRAMS)
    largest = tl.max(tl.load(partial + line, mask=line < partials, other=0.0))
    if pid == 0:
        tl.store(counters + RANGE_SLOT, largest.to(tl.int32, bitcast=True).to(tl.int64))
    exponent = unit_exponent(largest=largest, row_bits=row_bits)
    sums = accumulators + (pid % COPIES).to(tl.int64) * K * D
    for block in range(pid, tl.cdiv(N, BLOCK_ROWS), tl.num_programs(0)):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        code = tl.load(indices + row, mask=row < N, other=-1)
        tile = common.row_tile(view=x, row=row, valid=(code >= 0) & (code < K), M=M)
        valid = tile.valid
        if SKIP:
            valid = valid & common.row_is_finite(tile=tile, D=D, BLOCK_DIM=BLOCK_DIM, BLOCK_ROWS=BLOCK_ROWS)
        for start in tl.static_range(0, D, BLOCK_DIM):
            d = start + tl.arange(0, BLOCK_DIM)
            v = common.load_chunk(tile=tile, d=d, D=D).to(tl.float32)
            add_rows(
                sums=sums, counts=counts, exponent=exponent, code=code, valid=valid, v=v, d=d,
                FIRST=start == 0, D=D,
            )  # fmt: skip


@triton.jit
def to_float_sums(
    accumulators, sums, codebook, counts, largest, row_bits, size, start,
    D: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr, DIFFERENCES: tl.constexpr,
):  # fmt: skip
    """A block of the fixed-point sums in float32. DIFFERENCES: those of x - e' become those of x - e."""
    i = start + tl.arange(0, BLOCK).to(tl.int64)
    in_bounds = i < size
    total = tl.zeros((BLOCK,), tl.int64)
    for copy in tl.static_range(COPIES):
        total += tl.load(accumulators + copy * size + i, mask=in_bounds, other=0, cache_modifier=".cg")
    value = total.to(tl.float64) * power_of_two64(unit_exponent(largest=largest, row_bits=row_bits))
    if DIFFERENCES:
        first_code = start // D
        code = ((start - first_code * D).to(tl.int32) + tl.arange(0, BLOCK)) // D
        count = tl.load(counts + first_code + code, mask=in_bounds, other=0, cache_modifier=".cg")
        e = tl.load(codebook + i, mask=in_bounds, other=0.0).to(tl.float32)
        beyond = cut_off(codes=e, largest=largest).to(tl.float64) - cut_off(codes=e, largest=FLOAT32_MAX).to(
            tl.float64
        )
        value += count.to(tl.float64) * beyond
    tl.store(sums + i, value.to(tl.float32), mask=in_bounds)


@Kernel
@triton.jit
def float_sums_kernel(
    counters, accumulators, sums, codebook, counts, row_bits, size,
    D: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr, DIFFERENCES: tl.constexpr,
):  # fmt: skip
    to_float_sums(
        accumulators=accumulators, sums=sums, codebook=codebook, counts=counts,
        largest=stored_largest(counters=counters), row_bits=row_bits, size=size,
        start=tl.program_id(0).to(tl.int64) * BLOCK, D=D, COPIES=COPIES, BLOCK=BLOCK,
        DIFFERENCES=DIFFERENCES,
    )  # fmt: skip


def float_sums(
    counters: Tensor,
    accumulators: Tensor,
    sums: Tensor,
    rows: int,
    codebook: Tensor | None = None,
    counts: Tensor | None = None,
) -> None:
    """Launch that turns the fixed-point sums of ``rows`` rows into float32.

    With the codebook and the rows of each code they are the sums of differences from its codes.
    """
    K, D = sums.shape
    block = 1024
    differences = codebook is not None
    float_sums_kernel[(-(-K * D // block),)](
        counters,
        accumulators,
        sums,
        codebook,
        counts,
        row_bits(rows, differences),
        K * D,
        D=D,
        COPIES=copies(K, D),
        BLOCK=block,
        DIFFERENCES=differences,
        num_warps=4,
        enable_fp_fusion=False,
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
    counters = torch.empty(int(HEADER.value), dtype=torch.int64, device=device)
    sums_in_units = torch.empty(accumulators(K, D), dtype=torch.int64, device=device)
    block_dim, block_rows = common.streaming_tile(D)
    programs = max(1, min(4 * common.multiprocessors(device), -(-N // block_rows)))
    partial = torch.empty(programs, dtype=torch.float32, device=device)
    view = common.make_view(x)
    range_kernel[(programs,)](
        view,
        indices,
        counts,
        sums_in_units,
        partial,
        sums_in_units.numel(),
        N,
        M,
        K,
        D=D,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        num_warps=4,
        enable_fp_fusion=False,
    )
    accumulate_kernel[(programs,)](
        view,
        indices,
        counts,
        counters,
        sums_in_units,
        partial,
        programs,
        row_bits(N),
        N,
        M,
        K,
        D=D,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        PADDED_PROGRAMS=common.next_power_of_2(programs),
        COPIES=copies(K, D),
        SKIP=skip_nonfinite,
        num_warps=4,
        enable_fp_fusion=False,
    )
    float_sums(counters, sums_in_units, sums, N)
    return counts, sums
