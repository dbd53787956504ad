"""Nearest code of every row: matrix product and argmin in one kernel, nothing of size N x K.

One program keeps BN rows and walks over the codes in tiles of BK: scores = t * bias - z . e from
one (``fast``), two or three products of 16-bit parts. What follows the product runs on the plain
cores and costs as much as the product at D = 64, so it is short: a thread holds, for its rows, the
columns 8 i + 2 lane + {0, 1} of a tile (the layout of the tensor cores' result), so reducing over
i and the last bit alone stays inside threads, and lanes are merged once, after the last tile.

- ``fast`` and ``exact`` put the column, 5 bits at BK = 128, into the low bits of the score: one
  instruction, and minimum then carries the index along.
- ``exact`` also keeps the second smallest score. Where the two are further apart than the error
  bound the index is certain; the other rows are listed for the second pass (``rescore.py``).
- ``high`` keeps scores whole: minimum first, then the first column equal to it.

With few rows the codes are divided among SPLITS programs, whose partial results are merged in
order by the next kernel.

Memory traffic: x once, the parts of the codebook once per BN rows (from the L2 cache).
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import common, rows
from .common import AMBIGUOUS, MASKED


@triton.jit
def row_parts(
    x, offset, keep, usable, p, d, stride_d, center, dtype: tl.constexpr,
    D: tl.constexpr, SPLIT: tl.constexpr, PARTS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """A chunk of rows in parts, ``[BN, CHUNK]`` each; the second is the first where there is one."""
    if SPLIT:
        z = rows.read(x, offset, keep, d, stride_d, center, D, CENTERED)
        _scaled, first, second = rows.split(z, p, usable, dtype, PARTS)
    else:
        # Straight from memory, the tensor cores read the tile from shared memory instead of registers.
        first = rows.read_raw(x, offset, keep, d, stride_d, D)
        second = first
    return first, second


@triton.jit
def dot(a, b, acc, INTERPRETED: tl.constexpr):
    """acc + a b; in float32 where the interpreter's own product of bfloat16 is wrong."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def all_parts(
    x, offset, keep, usable, p, stride_d, center, dtype: tl.constexpr,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """The parts of RESIDENT rows, one tensor a chunk; empty where rows are read anew for every tile."""
    firsts = ()
    seconds = ()
    if RESIDENT:
        for start in tl.static_range(0, PADDED_D, CHUNK):
            first, second = row_parts(
                x, offset, keep, usable, p, start + tl.arange(0, CHUNK), stride_d, center, dtype,
                D, SPLIT, PARTS, CENTERED,
            )  # fmt: skip
            firsts = firsts + (first,)  # type: ignore[assignment]  # grows at compile time
            seconds = seconds + (second,)  # type: ignore[assignment]
    return firsts, seconds


@triton.jit
def product(
    firsts, seconds, high, low, x, offset, keep, usable, p, stride_d, center, tile,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, PARTS: tl.constexpr,
    CODE_PARTS: tl.constexpr, CENTERED: tl.constexpr, INTERPRETED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Minus the products of a tile of rows with a tile of codes: ``[BN, BK]`` float32.

    WIDE takes codebooks of 2^31 elements and more, at the price of a few registers. With RESIDENT rows
    the products with a second part come first, so that their rounding errors are relative to small sums.
    """
    dtype: tl.constexpr = high.dtype.element_ty
    acc = tl.zeros((BN, BK), tl.float32)
    inside_tile = tl.arange(0, BK)
    if WIDE:
        skipped = (tile + tl.zeros((), tl.int64)) * PADDED_D
        high += skipped
        low += skipped
    else:
        inside_tile += tile
    at = inside_tile[None, :] * PADDED_D + tl.arange(0, CHUNK)[:, None]
    if RESIDENT:
        for i in tl.static_range(PADDED_D // CHUNK):
            if CODE_PARTS == 2:
                acc = dot(firsts[i], tl.load(low + at + i * CHUNK), acc, INTERPRETED)
            if PARTS == 2:
                acc = dot(seconds[i], tl.load(high + at + i * CHUNK), acc, INTERPRETED)
        for i in tl.static_range(PADDED_D // CHUNK):
            acc = dot(firsts[i], tl.load(high + at + i * CHUNK), acc, INTERPRETED)
    else:
        for start in range(0, PADDED_D, CHUNK):
            first, second = row_parts(
                x, offset, keep, usable, p, start + tl.arange(0, CHUNK), stride_d, center, dtype,
                D, SPLIT, PARTS, CENTERED,
            )  # fmt: skip
            e_high = tl.load(high + at + start)
            if CODE_PARTS == 2:
                acc = dot(first, tl.load(low + at + start), acc, INTERPRETED)
            if PARTS == 2:
                acc = dot(second, e_high, acc, INTERPRETED)
            acc = dot(first, e_high, acc, INTERPRETED)
    return acc


@triton.jit
def certify(value, second, bound, DELTA: tl.constexpr):
    """(certain, threshold): whether the best score wins beyond doubt, else what no winner can exceed."""
    upper = value + DELTA * tl.abs(value)
    lower = second - DELTA * tl.abs(second)
    return lower - upper > 2.002 * bound, upper + 2.002 * bound


@triton.jit(do_not_specialize=["keep_bits"])
def search_kernel(
    x, high, low, bias, center, extremes, mask, index_out, value_out, second_out, bound_out,
    ambiguous, threshold, counters,
    N, M, K, padded_k, stride_b, stride_m, stride_d, programs, codes_per_split, keep_bits,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CODE_PARTS: tl.constexpr, CENTERED: tl.constexpr,
    L2: tl.constexpr, EXACT: tl.constexpr, PACK: tl.constexpr, DIVIDED: tl.constexpr,
    HAS_MASK: tl.constexpr, RANGE: tl.constexpr, INTERPRETED: tl.constexpr,
    MAIN: tl.constexpr, MINOR: tl.constexpr, CONTRACT: tl.constexpr, DELTA: tl.constexpr, SLACK: tl.constexpr,
    BOUND_SCALE: tl.constexpr, LINES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    CHUNKS: tl.constexpr = PADDED_D // CHUNK
    PACK_MASK: tl.constexpr = BK // 4 - 1
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    there = row < N
    keep = there
    if HAS_MASK:
        keep = tl.load(mask + row, mask=there, other=0) != 0
    offset = common.row_offset(row, M, stride_b, stride_m)

    exponent = rows.codes_exponent(extremes)
    finite, in_range, p, t = rows.measure(
        x, offset, keep, stride_d, center, exponent, D, CHUNK, CHUNKS, BN, SPLIT, CENTERED
    )
    dtype: tl.constexpr = high.dtype.element_ty
    if RANGE:
        # The largest |x| sets the unit of the deterministic sums (statistics.py).
        largest = tl.zeros((), tl.float32)
        for c in range(CHUNKS):
            raw = rows.read(x, offset, keep, c * CHUNK + tl.arange(0, CHUNK), stride_d, center, D, False)
            largest = tl.maximum(largest, tl.max(tl.where(finite[:, None], tl.abs(raw), 0.0)))
        tl.atomic_max(counters + 1, largest.to(tl.int32, bitcast=True).to(tl.int64), sem="relaxed")
    bound = tl.zeros((BN,), tl.float32)
    if EXACT:
        whole, missed, low_norm = rows.norms(
            x, offset, keep, finite, p, stride_d, center, dtype, D, CHUNK, CHUNKS, BN, PARTS, CENTERED
        )
        bound = rows.error_bound(
            extremes,
            programs,
            whole,
            missed,
            low_norm,
            t,
            MAIN,
            MINOR,
            CONTRACT,
            SLACK,
            BOUND_SCALE,
            L2,
            CENTERED,
            LINES,
        )
        bound = tl.where(in_range, bound, float("inf"))
    if EXACT or DIVIDED:
        # Through memory rather than registers, which the loop needs. A negative bound marks the rows
        # that hold NaN or infinity.
        if tl.program_id(1) == 0 or EXACT:
            tl.store(bound_out + row, tl.where(finite, bound, -1.0), mask=there)

    column = tl.arange(0, BK)
    in_thread = (column // 8) * 2 + (column & 1)
    lane = tl.arange(0, 4)
    best = tl.full((BN, 4), float("inf"), tl.float32)
    runner_up = tl.full((BN, 4), float("inf"), tl.float32)
    where = tl.zeros((BN, 4), tl.int32)
    begin = 0
    end = padded_k
    if DIVIDED:
        begin = tl.program_id(1) * codes_per_split
        end = tl.minimum(begin + codes_per_split, padded_k)
    firsts, seconds = all_parts(
        x, offset, keep, finite, p, stride_d, center, dtype,
        D, PADDED_D, CHUNK, RESIDENT, SPLIT, PARTS, CENTERED,
    )  # fmt: skip
    # A number for each row rather than one for the program: from a register, not a constant, clearing
    # bits and setting others is one instruction.
    kept = tl.where(t > 0, keep_bits, 0)
    for tile in tl.range(begin, end, BK, num_stages=STAGES):
        code_bias = tl.load(bias + tile + column)
        acc = product(
            firsts, seconds, high, low, x, offset, keep, finite, p, stride_d, center, tile,
            D, PADDED_D, CHUNK, RESIDENT, BN, BK, SPLIT, PARTS, CODE_PARTS, CENTERED, INTERPRETED, WIDE,
        )  # fmt: skip
        score = tl.fma(
            tl.broadcast_to(code_bias[None, :], (BN, BK)), tl.broadcast_to(t[:, None], (BN, BK)), acc
        )
        if PACK:
            # Complemented, so that among equal negative scores the lower column is the smaller number.
            bits = (score.to(tl.int32, bitcast=True) & kept[:, None]) | (PACK_MASK - in_thread)[None, :]
            packed = tl.reshape(bits, (BN, BK // 8, 4, 2)).to(tl.float32, bitcast=True)
            if EXACT:
                even, odd = tl.split(packed)
                low_value, high_value = common.two_smallest(even, odd, INTERPRETED)
                runner_up = tl.minimum(runner_up, tl.minimum(high_value, tl.maximum(low_value, best)))
            else:
                low_value = tl.min(tl.min(packed, 3), 1)
            where = tl.where(low_value < best, tile, where)
        else:
            whole_score = tl.reshape(score, (BN, BK // 8, 4, 2))
            low_value = tl.min(tl.min(whole_score, 3), 1)
            repeated = tl.broadcast_to(low_value[:, None, :, None], (BN, BK // 8, 4, 2))
            # The first column equal to the minimum, by arithmetic: comparisons of a whole tile would need
            # more predicates than there are. Any other column is pushed out of reach.
            distance = (score - tl.reshape(repeated, (BN, BK))) * 2.0**127
            matching = tl.reshape(distance + in_thread.to(tl.float32)[None, :], (BN, BK // 8, 4, 2))
            first_match = tl.min(tl.min(matching, 3), 1).to(tl.int32)
            where = tl.where(low_value < best, tile + first_match, where)
        best = tl.minimum(best, low_value)

    if PACK:
        bits = best.to(tl.int32, bitcast=True)
        where += PACK_MASK - (bits & PACK_MASK)
        best = (bits & keep_bits).to(tl.float32, bitcast=True)
    inner = where % BK
    code = where - inner + (inner // 2) * 8 + lane[None, :] * 2 + (inner & 1)
    value, code, runner_up = common.nearest_of_lanes(best, code, runner_up)
    code = tl.where((code >= 0) & (code < K), code, 0)

    if DIVIDED:
        at = tl.program_id(1).to(tl.int64) * N + row
        tl.store(value_out + at, value, mask=there)
        tl.store(index_out + at, code, mask=there)
        if EXACT:
            tl.store(second_out + at, runner_up, mask=there)
    else:
        if EXACT:
            tl.debug_barrier()
            bound = tl.load(bound_out + row, mask=there, other=0.0)
            finite = (bound < 0) == 0
        if HAS_MASK:
            keep = tl.load(mask + row, mask=there, other=0) != 0
        result = tl.where(finite, code, 0)
        if EXACT:
            certain, limit = certify(value, runner_up, bound, DELTA)
            open_row = keep & finite & (certain == 0)
            result = tl.where(open_row, AMBIGUOUS, result)
            found = open_row.to(tl.int32)
            count = tl.sum(found)
            if count > 0:
                slot = tl.atomic_add(counters, count.to(tl.int64), sem="relaxed")
                slot = slot + tl.cumsum(found, 0) - 1
                tl.store(ambiguous + slot, row.to(tl.int32), mask=open_row)
                tl.store(threshold + slot, limit, mask=open_row)
        result = tl.where(keep, result, MASKED)
        tl.store(index_out + row, result, mask=there)
