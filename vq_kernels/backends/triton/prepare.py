"""Codebook as the search wants it: centred, scaled, split into 16-bit parts once, with biases and bounds.

With a centre c and a power of two s, code e becomes the vector s (e - c), stored negated as one or
two float16 parts whose sum misses it by a residual that is computed here, not estimated. Rows see

    |x - e|^2 / 2 = |x - c|^2 / 2 + |e - c|^2 / 2 - (x - c) . (e - c)         centred rows
                  = |x|^2 / 2     + |e|^2 / 2 - x . c - x . (e - c)           rows as they are

so that adding the bias (what depends on the code alone) to the matrix product gives a score with
the same argmin. Any c and s are right; the mean and the range of a sample of the codes make the
bound tight. Codes of the rows' own 16-bit dtype are copied unchanged (c = 0, s = 1).

One launch: every program looks at the same sample itself, then works on its own codes, and leaves
one line of a table of extremes that the search reduces. It also zeroes the counters of later
kernels. Memory traffic: 4 K D bytes read, 2 to 4 K D written, 4 K D more for a copy of the codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .common import EXCLUDED, FLOAT32_MAX

# Rows of the table of extremes: float32 columns, norms in the scaled units of the stored codes.
LARGEST = tl.constexpr(0)  # norm over usable codes
SMALLEST = tl.constexpr(1)
RESIDUAL = tl.constexpr(2)  # |code - stored parts| / |code|
LOW_PART = tl.constexpr(3)  # |low part| / |code|
EXCLUDED_NORM = tl.constexpr(4)  # smallest norm of a finite code that is out of the parts' range
EXPONENT = tl.constexpr(5)  # log2 s
CENTER = tl.constexpr(6)  # s |c|
COLUMNS = tl.constexpr(8)

SAMPLE = 64
SLOT = 128  # codes are padded to a multiple of this, the largest tile of the search
MOST_CODES = 64  # of a program: it divides SLOT, and more would spill


class Prepared(NamedTuple):
    """K' is K padded to a multiple of 128, D' is D padded to the search's chunks, P the programs."""

    high: Tensor  # [K', D'] float16 or the codes' dtype
    low: Tensor  # [K', D'], or high where there is one part
    bias: Tensor  # [K'] float32
    center: Tensor  # [D'] float32
    extremes: Tensor  # [P, 8] float32
    square_high: Tensor  # [K] float64: sum of e^2 / 2 as an exact pair; [0] unless asked for
    square_low: Tensor  # [K] float64


@triton.jit
def prepare_kernel(
    codebook, high, low, bias, center, extremes, square_high, square_low, kept, scratch, scratch_size,
    counts, counts_size, K,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, CODES: tl.constexpr,
    SAMPLE: tl.constexpr, SPLIT: tl.constexpr, CENTERED_ROWS: tl.constexpr, L2: tl.constexpr,
    PARTS: tl.constexpr, SQUARES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    common.zero(scratch, scratch_size, 1024)
    common.zero(counts, counts_size, 1024)
    d0 = tl.arange(0, CHUNK)
    exponent = tl.zeros((), tl.int32)
    if SPLIT:
        sampled = tl.arange(0, SAMPLE).to(tl.int64) * K // SAMPLE
        spread = tl.zeros((), tl.float32)
        for start in tl.static_range(0, PADDED_D, CHUNK):
            d = start + d0
            e = tl.load(codebook + sampled[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
            e = e.to(tl.float32)
            usable = tl.abs(e) < 2.0**60
            mean = tl.sum(tl.where(usable, e, 0.0), 0) / SAMPLE
            spread = tl.maximum(spread, tl.max(tl.where(usable, tl.abs(e - mean[None, :]), 0.0)))
            # Every program writes the same values and reads back only what it wrote.
            tl.store(center + d, mean)
        tl.debug_barrier()
        # The sample fills half of float16's exponents from the top: codes 2^5 times wider still fit.
        exponent = tl.where(spread > 0, tl.minimum(tl.maximum(10 - common.exponent_of(spread), -100), 100), 0)
    scale = common.power_of_two(exponent).to(tl.float64)

    code = pid * CODES + tl.arange(0, CODES)
    real = code < K
    base = code.to(tl.int64)
    square = tl.zeros((CODES,), tl.float64)
    along_center = tl.zeros((CODES,), tl.float64)
    center_square = tl.zeros((), tl.float64)
    widest = tl.zeros((CODES,), tl.float64)
    nonfinite = tl.zeros((CODES,), tl.int32)
    for start in tl.static_range(0, PADDED_D, CHUNK):
        d = start + d0
        inside = real[:, None] & (d < D)[None, :]
        loaded = tl.load(codebook + base[:, None] * D + d[None, :], mask=inside, other=0.0)
        if KEEP:
            tl.store(kept + base[:, None] * D + d[None, :], loaded, mask=inside)
        e = loaded.to(tl.float32)
        nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(e) <= FLOAT32_MAX, 0, 1), 1))
        c = tl.zeros((CHUNK,), tl.float64)
        if SPLIT:
            c = tl.load(center + d).to(tl.float64)
        v = tl.where(inside, (e.to(tl.float64) - c[None, :]) * scale, 0.0)
        c = c * scale
        square += tl.sum(v * v, 1)
        along_center += tl.sum(v * c[None, :], 1)
        center_square += tl.sum(c * c)
        widest = tl.maximum(widest, tl.max(tl.abs(v), 1))
    norm = tl.sqrt(square)
    outside = norm > 2.0**45
    if SPLIT:
        outside = widest > 60000.0
    finite = real & (nonfinite == 0)
    usable = finite & (outside == 0)
    score = tl.zeros((CODES,), tl.float64)
    if L2:
        score = 0.5 * square
        if not CENTERED_ROWS:
            score += along_center
    tl.store(bias + code, tl.where(usable, score.to(tl.float32), EXCLUDED))

    residual = tl.zeros((CODES,), tl.float64)
    low_square = tl.zeros((CODES,), tl.float64)
    for start in tl.static_range(0, PADDED_D, CHUNK):
        d = start + d0
        inside = usable[:, None] & (d < D)[None, :]
        stored = base[:, None] * PADDED_D + d[None, :]
        e = tl.load(codebook + base[:, None] * D + d[None, :], mask=inside, other=0.0)
        if SPLIT:
            c = tl.load(center + d).to(tl.float64)
            v = tl.where(inside, (e.to(tl.float64) - c[None, :]) * scale, 0.0)
            first = v.to(tl.float32).to(tl.float16)
            rest = v - first.to(tl.float64)
            tl.store(high + stored, -first)
            if PARTS == 2:
                second = rest.to(tl.float32).to(tl.float16)
                tl.store(low + stored, -second)
                rest -= second.to(tl.float64)
                low_square += tl.sum(second.to(tl.float64) * second.to(tl.float64), 1)
            residual += tl.sum(rest * rest, 1)
        else:
            tl.store(high + stored, (-e.to(tl.float32)).to(high.dtype.element_ty))

    positive = tl.where(norm > 0, norm, 1.0)
    up = 1.0 + 2.0**-20  # a float32 rounding of a float64 result, with room
    line = extremes + pid * COLUMNS
    infinity = float("inf")
    tl.store(line + LARGEST, tl.max(tl.where(usable, norm, 0.0)) * up)
    tl.store(line + SMALLEST, tl.min(tl.where(usable, norm, infinity)) * up)
    # 2^-50 covers the float64 rounding of the scaled code itself.
    tl.store(line + RESIDUAL, tl.max(tl.where(usable, tl.sqrt(residual) / positive, 0.0)) * up + 2.0**-50)
    tl.store(line + LOW_PART, tl.max(tl.where(usable, tl.sqrt(low_square) / positive, 0.0)) * up)
    tl.store(line + EXCLUDED_NORM, tl.min(tl.where(finite & outside, norm, infinity)) / up)
    tl.store(line + EXPONENT, exponent.to(tl.float32))
    tl.store(line + CENTER, tl.sqrt(center_square) * up)

    if SQUARES:
        total = tl.zeros((CODES,), tl.float64)
        remainder = tl.zeros((CODES,), tl.float64)
        for d in range(D):
            entry = tl.load(codebook + base * D + d, mask=real, other=0.0).to(tl.float64)
            total, remainder = common.accumulate(total, remainder, 0.5 * entry * entry)
        # An infinite score keeps a non-finite code from ever being chosen.
        tl.store(square_high + base, tl.where(finite, total, infinity), mask=real)
        tl.store(square_low + base, tl.where(finite, remainder, 0.0), mask=real)


def prepare(
    codebook: Tensor,
    padded_d: int,
    *,
    split: bool,
    parts: int,
    centered_rows: bool,
    metric: str,
    squares: bool,
    scratch: Tensor,
    counts: Tensor,
    kept: Tensor | None = None,
) -> Prepared:
    """Launch on the current stream. ``scratch`` and ``counts`` (int64, any size) are filled with zero.

    ``kept`` (the codebook's shape and dtype) receives a copy of it.
    """
    K, D = codebook.shape
    padded_k = -(-K // SLOT) * SLOT
    codes = min(MOST_CODES, max(16, triton.next_power_of_2(-(-padded_k // 256))))
    programs = padded_k // codes
    empty = codebook.new_empty
    dtype = torch.float16 if split else codebook.dtype
    high = empty((padded_k, padded_d), dtype=dtype)
    low = empty((padded_k, padded_d), dtype=dtype) if parts == 2 else high
    squared = K if squares else 0
    prepared = Prepared(
        high,
        low,
        empty(padded_k, dtype=torch.float32),
        empty(padded_d, dtype=torch.float32),
        empty((programs, COLUMNS.value), dtype=torch.float32),
        empty(squared, dtype=torch.float64),
        empty(squared, dtype=torch.float64),
    )
    prepare_kernel[(programs,)](
        codebook,
        *prepared,
        kept,
        scratch,
        scratch.numel(),
        counts,
        counts.numel(),
        K,
        D=D,
        PADDED_D=padded_d,
        CHUNK=min(padded_d & -padded_d, 64),
        CODES=codes,
        SAMPLE=SAMPLE,
        SPLIT=split,
        CENTERED_ROWS=centered_rows,
        L2=metric == "l2",
        PARTS=parts,
        SQUARES=squares,
        KEEP=kept is not None,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return prepared
