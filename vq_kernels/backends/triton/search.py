"""Nearest code of every row: matrix product and argmin in one kernel, nothing of size N x K.

One program keeps a tile of rows and walks over the codes in tiles: scores = t * bias - z . e from
one (``fast``), two or three products of 16-bit parts. What follows the product runs on the plain
cores and costs as much as the product at D = 64, so it is short: a thread holds, for its rows, the
columns 8 i + 2 lane + {0, 1} of a tile (the layout of the tensor cores' result), so reducing over
i and the last bit alone stays inside threads, and lanes are merged once, after the last tile.

- ``fast`` and ``exact`` put the column, 5 bits at 128 codes, into the low bits of the score: one
  instruction, and minimum then carries the index along.
- ``exact`` also keeps the second smallest score. Where the two are further apart than the error
  bound the index is certain; the other rows are listed for the second pass (``rescore.py``).
- ``high`` keeps scores whole: minimum first, then the first column equal to it.

With few rows the codes are divided among SPLITS programs, whose partial results are merged in
order by the next kernel.

Memory traffic: x once, the parts of the codebook once a tile of rows (from the L2 cache).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import common, rows
from .common import AMBIGUOUS, MASKED


class Partial(NamedTuple):
    """What the search leaves for the kernels after it; P programs share the codes."""

    indices: Any  # [N], or [P, N] int32: index, -1 masked, -2 open
    value: Any  # [P, N] float32
    second_best: Any  # [P, N] float32
    row_bound: Any  # [N] float32, negative where a row holds NaN or infinity
    ambiguous: Any  # [N] int32, the open rows in any order
    threshold: Any  # [N] float32, of the open rows in that order: what no winner's score exceeds


@triton.jit
def row_parts(
    tile, codes, scales, d, dtype: tl.constexpr, D: tl.constexpr, plan: tl.constexpr
):  # fmt: skip
    """(high part, low part) of a chunk of rows, ``[BLOCK_ROWS, BLOCK_DIM]``; the same where there is one."""
    if plan.split:
        z = rows.read(tile=tile, center=codes.center, d=d, D=D, CENTERED=plan.centered_rows)
        _scaled, high_part, low_part = rows.split(
            z=z, row_scale=scales.row_scale, finite=scales.finite, dtype=dtype, PARTS=plan.parts
        )
    else:
        # Straight from memory, the tensor cores read the tile from shared memory instead of registers.
        high_part = common.load_chunk(tile=tile, d=d, D=D)
        low_part = high_part
    return high_part, low_part


@triton.jit
def dot(a, b, acc, INTERPRETED: tl.constexpr):
    """acc + a b; in float32 where the interpreter's own product of bfloat16 is wrong."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def all_parts(
    tile, codes, scales, D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr
):  # fmt: skip
    """The parts of resident rows, one tensor a chunk; empty where rows are read anew for every tile."""
    BLOCK_DIM: tl.constexpr = config.depth
    high_parts = ()
    low_parts = ()
    if config.resident:
        for start in tl.static_range(0, PADDED_D, BLOCK_DIM):
            high_part, low_part = row_parts(
                tile=tile, codes=codes, scales=scales, d=start + tl.arange(0, BLOCK_DIM),
                dtype=codes.high.dtype.element_ty, D=D, plan=plan,
            )  # fmt: skip
            high_parts = high_parts + (high_part,)  # type: ignore[assignment]  # grows at compile time
            low_parts = low_parts + (low_part,)  # type: ignore[assignment]
    return high_parts, low_parts


@triton.jit
def product(
    high_parts, low_parts, codes, tile, scales, first_code,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr,
    INTERPRETED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Minus the products of a tile of rows with a tile of codes: ``[BLOCK_ROWS, BLOCK_CODES]`` float32.

    WIDE takes codebooks of 2^31 elements and more, at the price of a few registers. With resident rows
    the products with a low part come first, so that their rounding errors are relative to small sums.
    """
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_CODES: tl.constexpr = config.codes
    BLOCK_DIM: tl.constexpr = config.depth
    PARTS: tl.constexpr = plan.parts
    CODE_PARTS: tl.constexpr = plan.code_parts
    high = codes.high
    low = codes.low
    acc = tl.zeros((BLOCK_ROWS, BLOCK_CODES), tl.float32)
    code = tl.arange(0, BLOCK_CODES)
    if WIDE:
        skipped = (first_code + tl.zeros((), tl.int64)) * PADDED_D
        high += skipped
        low += skipped
    else:
        code += first_code
    at = code[None, :] * PADDED_D + tl.arange(0, BLOCK_DIM)[:, None]
    if config.resident:
        for i in tl.static_range(PADDED_D // BLOCK_DIM):
            if CODE_PARTS == 2:
                acc = dot(high_parts[i], tl.load(low + at + i * BLOCK_DIM), acc, INTERPRETED)
            if PARTS == 2:
                acc = dot(low_parts[i], tl.load(high + at + i * BLOCK_DIM), acc, INTERPRETED)
        for i in tl.static_range(PADDED_D // BLOCK_DIM):
            acc = dot(high_parts[i], tl.load(high + at + i * BLOCK_DIM), acc, INTERPRETED)
    else:
        for start in range(0, PADDED_D, BLOCK_DIM):
            high_part, low_part = row_parts(
                tile=tile, codes=codes, scales=scales, d=start + tl.arange(0, BLOCK_DIM),
                dtype=codes.high.dtype.element_ty, D=D, plan=plan,
            )  # fmt: skip
            high_codes = tl.load(high + at + start)
            if CODE_PARTS == 2:
                acc = dot(high_part, tl.load(low + at + start), acc, INTERPRETED)
            if PARTS == 2:
                acc = dot(low_part, high_codes, acc, INTERPRETED)
            acc = dot(high_part, high_codes, acc, INTERPRETED)
    return acc


@triton.jit
def certify(value, second_best, row_bound, DELTA: tl.constexpr):
    """(certain, threshold): whether the best score wins beyond doubt, else what no winner can exceed."""
    upper = value + DELTA * tl.abs(value)
    lower = second_best - DELTA * tl.abs(second_best)
    return lower - upper > 2.002 * row_bound, upper + 2.002 * row_bound


@triton.jit(do_not_specialize=["column_mask"])
def search_kernel(
    x, mask, codes, partial, counters, N, M, K, padded_k, programs, codes_per_split, column_mask,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    DIVIDED: tl.constexpr, MEASURE_RANGE: tl.constexpr, INTERPRETED: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``column_mask`` clears the bits of a score that hold a column; the counters are statistics.py's."""
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_CODES: tl.constexpr = config.codes
    LAST_COLUMN: tl.constexpr = BLOCK_CODES // 4 - 1
    STAGES: tl.constexpr = config.stages
    EXACT: tl.constexpr = plan.exact
    PACK: tl.constexpr = plan.pack
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_in_range = row < N
    valid = row_in_range
    if mask is not None:
        valid = tl.load(mask + row, mask=row_in_range, other=0) != 0
    tile = common.row_tile(view=x, row=row, valid=valid, M=M)

    scales = rows.row_scales(tile=tile, codes=codes, D=D, PADDED_D=PADDED_D, plan=plan, config=config)
    if MEASURE_RANGE:
        largest = rows.largest_entry(
            tile=tile, finite=scales.finite, D=D, PADDED_D=PADDED_D, config=config
        )  # fmt: skip
        tl.atomic_max(counters + 1, largest.to(tl.int32, bitcast=True).to(tl.int64), sem="relaxed")
    row_bound = tl.zeros((BLOCK_ROWS,), tl.float32)
    if EXACT:
        norms = rows.row_norms(
            tile=tile, codes=codes, scales=scales, D=D, PADDED_D=PADDED_D, plan=plan, config=config
        )
        row_bound = rows.error_bound(
            norms=norms, score_scale=scales.score_scale, extremes=codes.extremes, programs=programs,
            plan=plan, bound=bound, PADDED_PROGRAMS=PADDED_PROGRAMS,
        )  # fmt: skip
        row_bound = tl.where(scales.in_range, row_bound, float("inf"))
    if EXACT or DIVIDED:
        # Through memory rather than registers, which the loop needs. A negative bound marks the rows
        # that hold NaN or infinity.
        if tl.program_id(1) == 0 or EXACT:
            tl.store(partial.row_bound + row, tl.where(scales.finite, row_bound, -1.0), mask=row_in_range)

    column = tl.arange(0, BLOCK_CODES)
    column_in_thread = (column // 8) * 2 + (column & 1)
    lane = tl.arange(0, 4)
    best = tl.full((BLOCK_ROWS, 4), float("inf"), tl.float32)
    second_best = tl.full((BLOCK_ROWS, 4), float("inf"), tl.float32)
    best_code = tl.zeros((BLOCK_ROWS, 4), tl.int32)
    begin = 0
    end = padded_k
    if DIVIDED:
        begin = tl.program_id(1) * codes_per_split
        end = tl.minimum(begin + codes_per_split, padded_k)
    high_parts, low_parts = all_parts(
        tile=tile, codes=codes, scales=scales, D=D, PADDED_D=PADDED_D, plan=plan, config=config
    )
    # A number for each row rather than one for the program: from a register, not a constant, clearing
    # bits and setting others is one instruction.
    score_mask = tl.where(scales.score_scale > 0, column_mask, 0)
    for first_code in tl.range(begin, end, BLOCK_CODES, num_stages=STAGES):
        code_bias = tl.load(codes.bias + first_code + column)
        acc = product(
            high_parts=high_parts, low_parts=low_parts, codes=codes, tile=tile, scales=scales,
            first_code=first_code, D=D, PADDED_D=PADDED_D, plan=plan, config=config,
            INTERPRETED=INTERPRETED, WIDE=WIDE,
        )  # fmt: skip
        score = tl.fma(
            tl.broadcast_to(code_bias[None, :], (BLOCK_ROWS, BLOCK_CODES)),
            tl.broadcast_to(scales.score_scale[:, None], (BLOCK_ROWS, BLOCK_CODES)),
            acc,
        )
        if PACK:
            # Complemented, so that among equal negative scores the lower column is the smaller number.
            bits = score.to(tl.int32, bitcast=True) & score_mask[:, None]
            bits = bits | (LAST_COLUMN - column_in_thread)[None, :]
            packed = tl.reshape(bits, (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2)).to(tl.float32, bitcast=True)
            if EXACT:
                even, odd = tl.split(packed)
                low_value, high_value = common.two_smallest(even=even, odd=odd, INTERPRETED=INTERPRETED)
                second_best = tl.minimum(second_best, tl.minimum(high_value, tl.maximum(low_value, best)))
            else:
                low_value = tl.min(tl.min(packed, 3), 1)
            best_code = tl.where(low_value < best, first_code, best_code)
        else:
            unpacked = tl.reshape(score, (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2))
            low_value = tl.min(tl.min(unpacked, 3), 1)
            repeated = tl.broadcast_to(low_value[:, None, :, None], (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2))
            # The first column equal to the minimum, by arithmetic: comparisons of a whole tile would need
            # more predicates than there are. Any other column is pushed out of reach.
            distance = score - tl.reshape(repeated, (BLOCK_ROWS, BLOCK_CODES))
            numbered = tl.fma(
                distance,
                tl.full((BLOCK_ROWS, BLOCK_CODES), 2.0**127, tl.float32),
                tl.broadcast_to(column_in_thread.to(tl.float32)[None, :], (BLOCK_ROWS, BLOCK_CODES)),
            )
            matching = tl.reshape(numbered, (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2))
            first_match = tl.min(tl.min(matching, 3), 1).to(tl.int32)
            best_code = tl.where(low_value < best, first_code + first_match, best_code)
        best = tl.minimum(best, low_value)

    if PACK:
        bits = best.to(tl.int32, bitcast=True)
        best_code += LAST_COLUMN - (bits & LAST_COLUMN)
        best = (bits & column_mask).to(tl.float32, bitcast=True)
    inner = best_code % BLOCK_CODES
    code = best_code - inner + (inner // 2) * 8 + lane[None, :] * 2 + (inner & 1)
    value, code, second_best = common.nearest_of_lanes(value=best, index=code, second_best=second_best)
    code = tl.where((code >= 0) & (code < K), code, 0)

    if DIVIDED:
        at = tl.program_id(1).to(tl.int64) * N + row
        tl.store(partial.value + at, value, mask=row_in_range)
        tl.store(partial.indices + at, code, mask=row_in_range)
        if EXACT:
            tl.store(partial.second_best + at, second_best, mask=row_in_range)
    else:
        finite = scales.finite
        if EXACT:
            tl.debug_barrier()
            row_bound = tl.load(partial.row_bound + row, mask=row_in_range, other=0.0)
            finite = (row_bound < 0) == 0
        if mask is not None:
            valid = tl.load(mask + row, mask=row_in_range, other=0) != 0
        index = tl.where(finite, code, 0)
        if EXACT:
            certain, threshold = certify(
                value=value, second_best=second_best, row_bound=row_bound, DELTA=bound.delta
            )
            is_open = valid & finite & (certain == 0)
            index = tl.where(is_open, AMBIGUOUS, index)
            count = tl.sum(is_open.to(tl.int32))
            if count > 0:
                slot = tl.atomic_add(counters, count.to(tl.int64), sem="relaxed")
                slot = slot + tl.cumsum(is_open.to(tl.int32), 0) - 1
                tl.store(partial.ambiguous + slot, row.to(tl.int32), mask=is_open)
                tl.store(partial.threshold + slot, threshold, mask=is_open)
        index = tl.where(valid, index, MASKED)
        tl.store(partial.indices + row, index, mask=row_in_range)
