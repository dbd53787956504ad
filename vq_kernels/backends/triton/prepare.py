"""Codebook as the search wants it: centred, scaled, split into 16-bit parts once, with biases and bounds.

With a centre c and a power of two s, code e becomes the vector s (e - c), stored negated as one or
two float16 parts whose sum misses it by a residual that is computed here, not estimated. Rows see

    |x - e|^2 / 2 = |x - c|^2 / 2 + |e - c|^2 / 2 - (x - c) . (e - c)         centred rows
                  = |x|^2 / 2     + |e|^2 / 2 - x . c - x . (e - c)           rows as they are

so that adding the bias (what depends on the code alone) to the matrix product gives a score with
the same argmin. Any c and s are right; the mean and the range of a sample of the codes make the
bound tight. Codes of the rows' own 16-bit dtype are copied unchanged (c = 0, s = 1).

Every program looks at the same sample itself, then works on its own codes, and leaves one line of a
table of extremes that the search reduces. It also zeroes the counters of later kernels. Codes that
equal an earlier one get a bias that never wins (``duplicates.py``): at once in a small codebook, by a
second launch in a large one.

Memory traffic: 4 K D bytes read, 2 to 4 K D written, 4 K D more for a copy of the codes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .codes import (
    CENTER,
    COLUMNS,
    EXCLUDED_NORM,
    EXPONENT,
    LARGEST,
    LOW_PART,
    RESIDUAL,
    SMALLEST,
    Prepared,
)
from .common import EXCLUDED, FLOAT32_MAX
from .duplicates import (
    NOT_ENTERED,
    equals_an_earlier_code,
    exclude_duplicates,
    hash_codes,
    make_tables,
)
from .exact import UNROLLED, half_squares
from .launch import Kernel
from .plan import Plan

SAMPLE = 64
SLOT = 128  # codes are padded to a multiple of this, the largest tile of the search
MOST_CODES = 64  # of a program: it divides SLOT, and more would spill


@triton.jit
def in_tiles(code, d, PADDED_D: tl.constexpr):
    """Offsets of codes and dimensions in tiles of 128 codes, ``[codes, d]``.

    The matrix unit reads core matrices of 8 codes by 8 numbers: two of them for 16 dimensions, 16 such pairs
    for the codes of a tile, one after the other.
    """
    tile = (code // 128).to(tl.int64) * (128 * PADDED_D)
    row = (code % 128) // 8 * 128 + code % 8 * 8
    column = d // 16 * (128 * 16) + (d // 8) % 2 * 64 + d % 8
    return (tile + row)[:, None] + column[None, :]


@Kernel
@triton.jit
def prepare_kernel(
    codebook, codes, codebook_copy, tables, counters, counters_size, counts, counts_size, K,
    D: tl.constexpr, PADDED_D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_CODES: tl.constexpr,
    SAMPLE: tl.constexpr, UNROLLED: tl.constexpr, plan: tl.constexpr, TILED: tl.constexpr,
):  # fmt: skip
    """Fill ``codes`` (:class:`Prepared`) and, where there are any, copy and hashes; zero the counters."""
    SPLIT: tl.constexpr = plan.split
    PARTS: tl.constexpr = plan.code_parts
    pid = tl.program_id(0)
    common.fill(target=counters, size=counters_size, value=0, BLOCK=1024)
    common.fill(target=counts, size=counts_size, value=0, BLOCK=1024)
    d0 = tl.arange(0, BLOCK_DIM)
    exponent = tl.zeros((), tl.int32)
    if SPLIT:
        sampled = tl.arange(0, SAMPLE).to(tl.int64) * K // SAMPLE
        spread = tl.zeros((), tl.float32)
        for start in range(0, PADDED_D, BLOCK_DIM):
            d = start + d0
            e = tl.load(codebook + sampled[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
            e = e.to(tl.float32)
            in_sample = tl.abs(e) < 2.0**60
            mean = tl.sum(tl.where(in_sample, e, 0.0), 0) / SAMPLE
            spread = tl.maximum(spread, tl.max(tl.where(in_sample, tl.abs(e - mean[None, :]), 0.0)))
            # Every program writes the same values and reads back only what it wrote.
            tl.store(codes.center + d, mean)
        tl.debug_barrier()
        # The sample fills half of float16's exponents from the top: codes 2^5 times wider still fit.
        exponent = tl.where(spread > 0, tl.minimum(tl.maximum(10 - common.exponent_of(spread), -100), 100), 0)
    scale = common.power_of_two(exponent).to(tl.float64)

    code = pid * BLOCK_CODES + tl.arange(0, BLOCK_CODES)
    code_in_range = code < K
    base = code.to(tl.int64)
    square = tl.zeros((BLOCK_CODES,), tl.float64)
    along_center = tl.zeros((BLOCK_CODES,), tl.float64)
    center_square = tl.zeros((), tl.float64)
    widest = tl.zeros((BLOCK_CODES,), tl.float64)
    nonfinite = tl.zeros((BLOCK_CODES,), tl.int32)
    for start in range(0, PADDED_D, BLOCK_DIM):
        d = start + d0
        in_bounds = code_in_range[:, None] & (d < D)[None, :]
        loaded = tl.load(codebook + base[:, None] * D + d[None, :], mask=in_bounds, other=0.0)
        if codebook_copy is not None:
            tl.store(codebook_copy + base[:, None] * D + d[None, :], loaded, mask=in_bounds)
        e = loaded.to(tl.float32)
        nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(e) <= FLOAT32_MAX, 0, 1), 1))
        c = tl.zeros((BLOCK_DIM,), tl.float64)
        if SPLIT:
            c = tl.load(codes.center + d).to(tl.float64)
        v = tl.where(in_bounds, (e.to(tl.float64) - c[None, :]) * scale, 0.0)
        c = c * scale
        square += tl.sum(v * v, 1)
        along_center += tl.sum(v * c[None, :], 1)
        center_square += tl.sum(c * c)
        widest = tl.maximum(widest, tl.max(tl.abs(v), 1))
    norm = tl.sqrt(square)
    outside = norm > 2.0**45
    if SPLIT:
        outside = widest > 60000.0
    finite = code_in_range & (nonfinite == 0)
    usable = finite & (outside == 0)
    score = tl.zeros((BLOCK_CODES,), tl.float64)
    if plan.l2:
        score = 0.5 * square
        if not plan.centered_rows:
            score += along_center
    if tables is not None:
        hashes = hash_codes(codebook=codebook, code=code, valid=code_in_range, D=D, BLOCK_DIM=BLOCK_DIM)
        tl.store(tables.hashes + base, hashes, mask=code_in_range)
        common.fill(target=tables.entries, size=2 * tables.size, value=NOT_ENTERED, BLOCK=1024)
        can_win = usable
    else:
        is_duplicate = equals_an_earlier_code(
            codebook=codebook, code=code, K=K, D=D, BLOCK_DIM=BLOCK_DIM, CHUNK=32
        )
        can_win = usable & (is_duplicate == 0)
    tl.store(codes.bias + code, tl.where(can_win, score.to(tl.float32), EXCLUDED))

    residual = tl.zeros((BLOCK_CODES,), tl.float64)
    low_square = tl.zeros((BLOCK_CODES,), tl.float64)
    for start in range(0, PADDED_D, BLOCK_DIM):
        d = start + d0
        in_bounds = usable[:, None] & (d < D)[None, :]
        stored = base[:, None] * PADDED_D + d[None, :]
        e = tl.load(codebook + base[:, None] * D + d[None, :], mask=in_bounds, other=0.0)
        if SPLIT:
            c = tl.load(codes.center + d).to(tl.float64)
            v = tl.where(in_bounds, (e.to(tl.float64) - c[None, :]) * scale, 0.0)
            high_part = v.to(tl.float32).to(tl.float16)
            rest = v - high_part.to(tl.float64)
            tl.store(codes.high + stored, -high_part)
            if TILED:
                tl.store(codes.tiles + in_tiles(code=code, d=d, PADDED_D=PADDED_D), -high_part)
            if PARTS == 2:
                low_part = rest.to(tl.float32).to(tl.float16)
                tl.store(codes.low + stored, -low_part)
                rest -= low_part.to(tl.float64)
                low_square += tl.sum(low_part.to(tl.float64) * low_part.to(tl.float64), 1)
            residual += tl.sum(rest * rest, 1)
        else:
            own = (-e.to(tl.float32)).to(codes.high.dtype.element_ty)
            tl.store(codes.high + stored, own)
            if TILED:
                tl.store(codes.tiles + in_tiles(code=code, d=d, PADDED_D=PADDED_D), own)

    positive = tl.where(norm > 0, norm, 1.0)
    up = 1.0 + 2.0**-20  # a float32 rounding of a float64 result, with room
    line = codes.extremes + pid * COLUMNS
    infinity = float("inf")
    tl.store(line + LARGEST, tl.max(tl.where(usable, norm, 0.0)) * up)
    tl.store(line + SMALLEST, tl.min(tl.where(usable, norm, infinity)) * up)
    # 2^-50 covers the float64 rounding of the scaled code itself.
    tl.store(line + RESIDUAL, tl.max(tl.where(usable, tl.sqrt(residual) / positive, 0.0)) * up + 2.0**-50)
    tl.store(line + LOW_PART, tl.max(tl.where(usable, tl.sqrt(low_square) / positive, 0.0)) * up)
    tl.store(line + EXCLUDED_NORM, tl.min(tl.where(finite & outside, norm, infinity)) / up)
    tl.store(line + EXPONENT, exponent.to(tl.float32))
    tl.store(line + CENTER, tl.sqrt(center_square) * up)

    if plan.exact:
        total, remainder, _nonfinite = half_squares(
            at=codebook + base * D, valid=code_in_range, D=D, CODES=BLOCK_CODES, UNROLLED=UNROLLED,
            VECTOR=D % 4 == 0,
        )  # fmt: skip
        # An infinite score keeps a non-finite code from ever being chosen.
        tl.store(codes.square_high + base, tl.where(finite, total, infinity), mask=code_in_range)
        tl.store(codes.square_low + base, tl.where(finite, remainder, 0.0), mask=code_in_range)


def padded_codes(codebook_size: int) -> int:
    """Number of codes that are prepared: every tile of the search is full."""
    return -(-codebook_size // SLOT) * SLOT


def prepare(
    codebook: Tensor,
    padded_d: int,
    plan: Plan,
    *,
    counters: Tensor,
    counts: Tensor,
    codebook_copy: Tensor | None = None,
    tiled: bool = False,
) -> Prepared:
    """Launch on the current stream. ``counters`` and ``counts`` (int64, any size) are filled with zero.

    ``codebook_copy`` (the codebook's shape and dtype) receives a copy of it.
    ``tiled``: in the order of ``hopper.py`` too.
    """
    K, D = codebook.shape
    padded_k = padded_codes(K)
    wanted = -(-padded_k // (2 * common.multiprocessors(codebook.device)))
    block_codes = min(MOST_CODES, max(16, common.next_power_of_2(wanted)))
    programs = padded_k // block_codes
    empty = codebook.new_empty
    dtype = torch.float16 if plan.split else codebook.dtype
    high = empty(padded_k, padded_d, dtype=dtype)
    low = empty(padded_k, padded_d, dtype=dtype) if plan.code_parts == 2 else high
    squared = K if plan.exact else 0
    tables = make_tables(codebook)
    prepared = Prepared(
        high,
        low,
        torch.empty_like(high) if tiled else high,
        empty(padded_k, dtype=torch.float32),
        empty(padded_d, dtype=torch.float32),
        empty(programs, COLUMNS.value, dtype=torch.float32),
        empty(squared, dtype=torch.float64),
        empty(squared, dtype=torch.float64),
    )
    prepare_kernel[(programs,)](
        codebook,
        prepared,
        codebook_copy,
        tables,
        counters,
        counters.numel(),
        counts,
        counts.numel(),
        K,
        D=D,
        PADDED_D=padded_d,
        BLOCK_DIM=min(padded_d & -padded_d, 64),
        BLOCK_CODES=block_codes,
        SAMPLE=SAMPLE,
        UNROLLED=UNROLLED,
        plan=plan,
        TILED=tiled,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return prepared if tables is None else exclude_duplicates(codebook, prepared, tables, counters)
