"""Nearest code of every row: matrix product and argmin in one kernel, nothing of size N x K.

One program keeps a tile of rows and walks over the codes in tiles: scores = t * bias - z . e from
one (``fast``), two or three products of 16-bit parts. What follows the product runs on the plain
cores and costs as much as the product at D = 64, so it is short: a thread holds, for its rows, the
columns 8 i + 2 lane + {0, 1} of a tile (the layout of the tensor cores' result), so reducing over
i and the last bit alone stays inside threads, and lanes are merged once, after the last tile.

- ``fast`` and ``exact`` put the column, 5 bits at 128 codes, into the low bits of the score: one
  instruction, and minimum then carries the index along.
- ``exact`` also keeps the second smallest score. Where the two are further apart than the error
  bound the index is certain; the other rows are listed for the second pass (``resolve.py``).
- ``high`` keeps scores whole: minimum first, then the first column equal to it.

With few rows several programs share the codes of a tile of rows; the last of them to arrive merges
their results in the order of the codes.

The same kernel is the middle pass of a cascade (``nearest.py``): with all products, over the rows that
a first one left open, whose number only the device knows.

Memory traffic: x once, the parts of the codebook once a tile of rows (from the L2 cache).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import common, rows
from .common import AMBIGUOUS, MASKED, OPEN_SLOT, RANGE_SLOT, STILL_OPEN_SLOT
from .launch import Kernel
from .product import all_parts, product

# Programs whose results the last one of a tile of rows reads at once.
MERGED = tl.constexpr(8)


class Partial(NamedTuple):
    """Scratch of a search whose codes are divided among S programs."""

    indices: Any  # [S, N] int32
    value: Any  # [S, N] float32
    second_best: Any  # [S, N] float32
    tickets: Any  # [row tiles] int64, zero before


class OpenRows(NamedTuple):
    """The rows that a search leaves open, in any order; their number is a counter.

    With a middle pass both are twice as long, and its list begins at N.
    """

    rows: Any  # [N] int32
    ceiling: Any  # [N] float32: the exact score of the row's nearest code is not above it


@triton.jit
def load_shared(pointer, valid):
    """Load what other programs wrote in the same launch, not from this multiprocessor's own cache."""
    return tl.load(pointer, mask=valid, other=0, cache_modifier=".cg")


@triton.jit
def load_results(value, rest, index, at, stride, left, valid):
    """(value, rest, index) of MERGED programs, ``stride`` apart, in one tuple; infinite where none are left.

    All are asked for before one is looked at: they are as far away as all of memory.
    """
    loaded = ()
    for i in tl.static_range(MERGED):
        there = valid & (i < left)
        loaded = loaded + (
            load_shared(value + at + i * stride, there),
            load_shared(rest + at + i * stride, there),
            load_shared(index + at + i * stride, there),
            there,
        )
    results = ()
    for i in tl.static_range(MERGED):
        there = loaded[4 * i + 3]
        results = results + (
            tl.where(there, loaded[4 * i], float("inf")),
            tl.where(there, loaded[4 * i + 1], float("inf")),
            loaded[4 * i + 2],
        )
    return results


@triton.jit
def scan(
    tile, codes, scales, begin, end, column_mask,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr,
    INTERPRETED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(best score, its code, second best score) of a tile of rows over the codes from begin to end.

    ``column_mask`` clears the bits of a score that hold a column. The second best score, infinite unless
    the search is exact, is that of another code, or not above it.
    """
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_CODES: tl.constexpr = config.codes
    LAST_COLUMN: tl.constexpr = BLOCK_CODES // 4 - 1
    STAGES: tl.constexpr = config.stages
    column = tl.arange(0, BLOCK_CODES)
    column_in_thread = (column // 8) * 2 + (column & 1)
    lane = tl.arange(0, 4)
    best = tl.full((BLOCK_ROWS, 4), float("inf"), tl.float32)
    second_best = tl.full((BLOCK_ROWS, 4), float("inf"), tl.float32)
    best_code = tl.zeros((BLOCK_ROWS, 4), tl.int32)
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
        if plan.pack:
            # Complemented, so that among equal negative scores the lower column is the smaller number.
            bits = score.to(tl.int32, bitcast=True) & score_mask[:, None]
            bits = bits | (LAST_COLUMN - column_in_thread)[None, :]
            packed = tl.reshape(bits, (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2)).to(tl.float32, bitcast=True)
            if plan.exact:
                even, odd = tl.split(packed)
                low_value, high_value = common.two_smallest(even=even, odd=odd, INTERPRETED=INTERPRETED)
                second_best = tl.minimum(second_best, tl.minimum(high_value, tl.maximum(low_value, best)))
            else:
                low_value = tl.min(tl.min(packed, 3), 1)
            # Of equal scores the earlier tile wins, whatever their columns.
            low_score = (low_value.to(tl.int32, bitcast=True) & score_mask[:, None]).to(
                tl.float32, bitcast=True
            )
            best_score = (best.to(tl.int32, bitcast=True) & score_mask[:, None]).to(tl.float32, bitcast=True)
            is_lower = low_score < best_score
            best_code = tl.where(is_lower, first_code, best_code)
            best = tl.where(is_lower, low_value, best)
        else:
            unpacked = tl.reshape(score, (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2))
            low_value = tl.min(tl.min(unpacked, 3), 1)
            repeated = tl.broadcast_to(low_value[:, None, :, None], (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2))
            # The first column equal to the minimum, by arithmetic: comparisons of a whole tile would need
            # more predicates than there are. Any other column is pushed out of reach.
            distance = score - tl.reshape(repeated, (BLOCK_ROWS, BLOCK_CODES))
            if not plan.split:
                # Unscaled 16-bit numbers may be tiny: even 2^-149, the smallest difference, becomes 2^8.
                distance = distance * 2.0**30
            numbered = tl.fma(
                distance,
                tl.full((BLOCK_ROWS, BLOCK_CODES), 2.0**127, tl.float32),
                tl.broadcast_to(column_in_thread.to(tl.float32)[None, :], (BLOCK_ROWS, BLOCK_CODES)),
            )
            matching = tl.reshape(numbered, (BLOCK_ROWS, BLOCK_CODES // 8, 4, 2))
            first_match = tl.min(tl.min(matching, 3), 1).to(tl.int32)
            best_code = tl.where(low_value < best, first_code + first_match, best_code)
            best = tl.minimum(best, low_value)

    if plan.pack:
        bits = best.to(tl.int32, bitcast=True)
        best_code += LAST_COLUMN - (bits & LAST_COLUMN)
        best = (bits & column_mask).to(tl.float32, bitcast=True)
    inner = best_code % BLOCK_CODES
    code = best_code - inner + (inner // 2) * 8 + lane[None, :] * 2 + (inner & 1)
    return common.nearest_of_lanes(value=best, index=code, second_best=second_best)


@triton.jit
def bound_of_rows(
    tile, codes, scales, programs,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    PADDED_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The error bound of every row's scores, infinite where there is none: ``[BLOCK_ROWS]``."""
    norms = rows.row_norms(
        tile=tile, codes=codes, scales=scales, D=D, PADDED_D=PADDED_D, plan=plan, config=config
    )
    row_bound = rows.error_bound(
        norms=norms, score_scale=scales.score_scale, extremes=codes.extremes, programs=programs,
        plan=plan, bound=bound, PADDED_PROGRAMS=PADDED_PROGRAMS,
    )  # fmt: skip
    return tl.where(scales.in_range, row_bound, float("inf"))


@triton.jit
def certify(value, second_best, row_bound, DELTA: tl.constexpr):
    """(certain, upper): whether the best score wins beyond doubt, and what the whole score is not above."""
    upper = value + DELTA * tl.abs(value)
    lower = second_best - DELTA * tl.abs(second_best)
    return lower - upper > 2.002 * row_bound, upper


@triton.jit
def decide(
    row, valid, row_in_range, value, code, second_best, bounds, open_rows, begin, counter, indices,
    EXACT: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """Store the index of every row, and list those whose index is not certain from ``begin`` on."""
    row_bound = tl.load(bounds + row, mask=row_in_range, other=0.0)
    finite = (row_bound < 0) == 0
    index = tl.where(finite, code, 0)
    if EXACT:
        certain, upper = certify(value=value, second_best=second_best, row_bound=row_bound, DELTA=DELTA)
        is_open = valid & finite & (certain == 0)
        index = tl.where(is_open, AMBIGUOUS, index)
        count = tl.sum(is_open.to(tl.int32))
        if count > 0:
            slot = begin + tl.atomic_add(counter, count.to(tl.int64), sem="relaxed")
            slot = slot + tl.cumsum(is_open.to(tl.int32), 0) - 1
            tl.store(open_rows.rows + slot, row, mask=is_open)
            tl.store(open_rows.ceiling + slot, upper + 1.001 * row_bound, mask=is_open)
    tl.store(indices + row, tl.where(valid, index, MASKED), mask=row_in_range)


@Kernel
@triton.jit(do_not_specialize=["column_mask"])
def search_kernel(
    x, mask, codes, partial, bounds, open_rows, counters, indices, N, M, K, padded_k, programs,
    codes_per_split, column_mask,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    MEASURE_RANGE: tl.constexpr, INTERPRETED: tl.constexpr, PADDED_PROGRAMS: tl.constexpr,
    WIDE: tl.constexpr, LISTED_FROM: tl.constexpr,
):  # fmt: skip
    """``bounds`` is scratch ``[N]`` float32; ``partial`` is there where the codes are divided.

    LISTED_FROM: search the open rows instead, if there are at least so many; 0 searches all rows.
    """
    BLOCK_ROWS: tl.constexpr = config.rows
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_in_range = row < N
    begin_of_list = 0
    counter = counters + OPEN_SLOT
    if LISTED_FROM > 0:
        count = tl.load(counter).to(tl.int32)
        if (count < LISTED_FROM) | (tl.program_id(0) * BLOCK_ROWS >= count):
            return
        row_in_range = row < count
        row = tl.load(open_rows.rows + row, mask=row_in_range, other=0)
        begin_of_list = N
        counter = counters + STILL_OPEN_SLOT
    valid = row_in_range
    if mask is not None:
        valid = tl.load(mask + row, mask=row_in_range, other=0) != 0
    tile = common.row_tile(view=x, row=row, valid=valid, M=M)

    scales = rows.row_scales(tile=tile, codes=codes, D=D, PADDED_D=PADDED_D, plan=plan, config=config)
    if MEASURE_RANGE:
        largest = rows.largest_entry(
            tile=tile, finite=scales.finite, D=D, PADDED_D=PADDED_D, config=config
        )  # fmt: skip
        largest = largest.to(tl.int32, bitcast=True).to(tl.int64)
        tl.atomic_max(counters + RANGE_SLOT, largest, sem="relaxed")
    row_bound = tl.zeros((BLOCK_ROWS,), tl.float32)
    if plan.exact:
        row_bound = bound_of_rows(
            tile=tile, codes=codes, scales=scales, programs=programs, D=D, PADDED_D=PADDED_D,
            plan=plan, config=config, bound=bound, PADDED_PROGRAMS=PADDED_PROGRAMS,
        )  # fmt: skip
    # Through memory rather than registers, which the loop needs. A negative bound marks the rows that
    # hold NaN or infinity. Programs that share a row write the same.
    tl.store(bounds + row, tl.where(scales.finite, row_bound, -1.0), mask=row_in_range)

    begin = 0
    end = padded_k
    if partial is not None:
        begin = tl.program_id(1) * codes_per_split
        end = tl.minimum(begin + codes_per_split, padded_k)
    value, code, second_best = scan(
        tile=tile, codes=codes, scales=scales, begin=begin, end=end, column_mask=column_mask,
        D=D, PADDED_D=PADDED_D, plan=plan, config=config, INTERPRETED=INTERPRETED, WIDE=WIDE,
    )  # fmt: skip
    code = tl.where((code >= 0) & (code < K), code, 0)
    if mask is not None:
        valid = tl.load(mask + row, mask=row_in_range, other=0) != 0
    tl.debug_barrier()
    if partial is None:
        decide(
            row=row, valid=valid, row_in_range=row_in_range, value=value, code=code,
            second_best=second_best, bounds=bounds, open_rows=open_rows, begin=begin_of_list,
            counter=counter, indices=indices, EXACT=plan.exact, DELTA=bound.delta,
        )  # fmt: skip
    else:
        at = tl.program_id(1).to(tl.int64) * N + row
        tl.store(partial.value + at, value, mask=row_in_range)
        tl.store(partial.indices + at, code, mask=row_in_range)
        tl.store(partial.second_best + at, second_best, mask=row_in_range)
        tl.debug_barrier()
        arrived = tl.atomic_add(partial.tickets + tl.program_id(0), 1, sem="acq_rel")
        if arrived == tl.num_programs(1) - 1:
            value = tl.full((BLOCK_ROWS,), float("inf"), tl.float32)
            second_best = tl.full((BLOCK_ROWS,), float("inf"), tl.float32)
            code = tl.zeros((BLOCK_ROWS,), tl.int32)
            stride = N + tl.zeros((), tl.int64)
            for first in range(0, tl.num_programs(1), MERGED):
                results = load_results(
                    value=partial.value, rest=partial.second_best, index=partial.indices,
                    at=first * stride + row, stride=stride, left=tl.num_programs(1) - first,
                    valid=row_in_range,
                )  # fmt: skip
                for i in tl.static_range(MERGED):
                    value, code, second_best = common.nearest_and_second(
                        value_a=value,
                        index_a=code,
                        second_a=second_best,
                        value_b=results[3 * i],
                        index_b=results[3 * i + 2],
                        second_b=results[3 * i + 1],
                    )
            decide(
                row=row, valid=valid, row_in_range=row_in_range, value=value, code=code,
                second_best=second_best, bounds=bounds, open_rows=open_rows, begin=begin_of_list,
                counter=counter, indices=indices, EXACT=plan.exact, DELTA=bound.delta,
            )  # fmt: skip
