"""Last pass of the exact search: the rows that the passes before left open.

The first pass takes one product of 16-bit parts and leaves a few rows in a hundred open; where they are
many and the codebook is large, a middle pass scores them with all products and leaves one in a thousand.
Here rows are scored with all products, in tiles of 64 from the list; what that leaves open as well has
its candidates scored in float64, with an error-free summation in the order that ``base.py`` defines.
A row with more than 4 candidates (no finite bound, or codes that differ in their last bits) is scored
against all codes.

How many rows there are stays on the device. The grid is as large as the GPU, and the unit of work is
a tile of rows with a piece of the codes: all codes where there are tiles enough, else as small a piece
as keeps every program busy. Pieces leave their best exact scores, and the last program to arrive at
a tile merges them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import common, rows
from .common import OPEN_SLOT, STILL_OPEN_SLOT
from .exact import exact_score
from .launch import Kernel
from .product import all_parts, product
from .search import MERGED, bound_of_rows, certify, load_results, scan

CANDIDATES = tl.constexpr(4)

# Tiles of codes that a piece has at least.
LEAST_TILES = tl.constexpr(2)


class Pieces(NamedTuple):
    """Scratch of the second pass, for P programs and tiles of R rows."""

    candidates: Any  # [P, R, 4] int32
    value: Any  # [P, R] float64
    rest: Any  # [P, R] float64
    index: Any  # [P, R] int32
    tickets: Any  # [P] int64, zero before


@triton.jit
def collect_candidates(
    tile, codes, scales, threshold, candidates, begin, end, K,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """How many codes of a piece score at most the threshold; the first 4 are stored: ``[BLOCK_ROWS]``."""
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_CODES: tl.constexpr = config.codes
    column = tl.arange(0, BLOCK_CODES)
    local = tl.arange(0, BLOCK_ROWS)
    count = tl.zeros((BLOCK_ROWS,), tl.int32)
    high_parts, low_parts = all_parts(
        tile=tile, codes=codes, scales=scales, D=D, PADDED_D=PADDED_D, plan=plan, config=config
    )
    for first_code in range(begin, end, BLOCK_CODES):
        code_bias = tl.load(codes.bias + first_code + column)
        acc = product(
            high_parts=high_parts, low_parts=low_parts, codes=codes, tile=tile, scales=scales,
            first_code=first_code, D=D, PADDED_D=PADDED_D, plan=plan, config=config,
            INTERPRETED=INTERPRETED, WIDE=True,
        )  # fmt: skip
        score = code_bias[None, :] * scales.score_scale[:, None] + acc
        # Written so that a NaN on either side leaves the code in.
        ruled_out = (score > threshold[:, None]) | ((first_code + column) >= K)[None, :]
        could_win = tl.where(ruled_out | (tile.valid == 0)[:, None], 0, 1)
        if tl.max(could_win) > 0:
            slot = count[:, None] + tl.cumsum(could_win, 1) - 1
            fits = (could_win > 0) & (slot < CANDIDATES)
            at = candidates + local[:, None] * CANDIDATES + slot
            tl.store(at, (first_code + column)[None, :] + tl.zeros_like(could_win), mask=fits)
            count += tl.sum(could_win, 1)
    tl.debug_barrier()
    return count


@triton.jit
def nearest_of_candidates(
    tile, codebook, codes, candidates, count, begin, end, BLOCK_ROWS: tl.constexpr, D: tl.constexpr,
    L2: tl.constexpr,
):  # fmt: skip
    """(value, rest, index) of the nearest candidate; rows with more than 4 try all codes of the piece."""
    slot = tl.arange(0, CANDIDATES)
    at = candidates + tl.arange(0, BLOCK_ROWS)[:, None] * CANDIDATES + slot[None, :]
    many = count > CANDIDATES
    is_candidate = (slot[None, :] < count[:, None]) & (many == 0)[:, None]
    listed = tl.load(at, mask=is_candidate, other=0)
    value = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
    rest = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
    index = tl.zeros((BLOCK_ROWS,), tl.int32)
    # One round for the candidates, or as many as it takes to try every code.
    last = tl.where(tl.max(count) > CANDIDATES, end, begin + 1)
    for first_code in range(begin, last, CANDIDATES):
        in_order = first_code + slot
        code = tl.where(many[:, None], in_order[None, :], listed)
        valid = tl.where(many[:, None], (in_order < end)[None, :], is_candidate & (first_code == begin))
        score, score_rest = exact_score(
            tile=tile, codebook=codebook, codes=codes, code=code, valid=valid, D=D, L2=L2
        )
        value_b, rest_b, index_b = common.nearest_of_exact(value=score, rest=score_rest, index=code)
        value, rest, index = common.nearest_exact(
            value_a=value, rest_a=rest, index_a=index, value_b=value_b, rest_b=rest_b, index_b=index_b
        )
    # The scratch is used again for the next rows.
    tl.debug_barrier()
    return value, rest, index


@triton.jit
def resolve_piece(
    tile, ceiling, codebook, codes, candidates, begin, end, is_whole, K, programs, column_mask,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    INTERPRETED: tl.constexpr, PADDED_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """(value, rest, index) of the nearest code of a piece, infinite where another piece has it.

    Where the piece is the whole codebook, value and rest are zero of an index that is certain.
    """
    BLOCK_ROWS: tl.constexpr = config.rows
    scales = rows.row_scales(tile=tile, codes=codes, D=D, PADDED_D=PADDED_D, plan=plan, config=config)
    row_bound = bound_of_rows(
        tile=tile, codes=codes, scales=scales, programs=programs, D=D, PADDED_D=PADDED_D, plan=plan,
        config=config, bound=bound, PADDED_PROGRAMS=PADDED_PROGRAMS,
    )  # fmt: skip
    best, index, second_best = scan(
        tile=tile, codes=codes, scales=scales, begin=begin, end=end, column_mask=column_mask, D=D,
        PADDED_D=PADDED_D, plan=plan, config=config, INTERPRETED=INTERPRETED, WIDE=True,
    )  # fmt: skip
    certain, upper = certify(value=best, second_best=second_best, row_bound=row_bound, DELTA=bound.delta)
    certain = certain & is_whole
    # No score of the nearest code is above what the first pass leaves possible, nor above the best here.
    threshold = tl.minimum(ceiling + 1.001 * row_bound, upper + 2.002 * row_bound)
    is_open = tile.valid & (certain == 0) & ((best - bound.delta * tl.abs(best) > threshold) == 0)
    value = tl.where(certain, 0.0, float("inf")).to(tl.float64)
    rest = value
    if tl.max(is_open.to(tl.int32)) > 0:
        open_tile = common.RowTile(tile.data, tile.stride_d, tile.offset, is_open)
        count = collect_candidates(
            tile=open_tile, codes=codes, scales=scales, threshold=threshold, candidates=candidates,
            begin=begin, end=end, K=K, D=D, PADDED_D=PADDED_D, plan=plan, config=config,
            INTERPRETED=INTERPRETED,
        )  # fmt: skip
        exact_value, exact_rest, exact_index = nearest_of_candidates(
            tile=open_tile, codebook=codebook, codes=codes, candidates=candidates, count=count,
            begin=begin, end=tl.minimum(end, K), BLOCK_ROWS=BLOCK_ROWS, D=D, L2=plan.l2,
        )  # fmt: skip
        value = tl.where(is_open, exact_value, value)
        rest = tl.where(is_open, exact_rest, rest)
        index = tl.where(is_open, exact_index, index)
    return value, rest, tl.where(value < float("inf"), index, 0)


@Kernel
@triton.jit(do_not_specialize=["column_mask"])
def resolve_kernel(
    x, codebook, codes, open_rows, pieces, counters, indices, N, M, K, padded_k, programs, column_mask,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    INTERPRETED: tl.constexpr, PADDED_PROGRAMS: tl.constexpr, LISTED_FROM: tl.constexpr,
):  # fmt: skip
    """Write the indices of all open rows; ``programs`` is the number of lines of the table of extremes.

    LISTED_FROM: of so many or more open rows a middle pass has left its own list; 0 if there is none.
    """
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_CODES: tl.constexpr = config.codes
    pid = tl.program_id(0)
    local = tl.arange(0, BLOCK_ROWS)
    count = tl.load(counters + OPEN_SLOT).to(tl.int32)
    begin_of_list = tl.zeros((), tl.int64)
    if LISTED_FROM > 0:
        is_listed = count >= LISTED_FROM
        begin_of_list += tl.where(is_listed, N, 0)
        count = tl.where(is_listed, tl.load(counters + STILL_OPEN_SLOT).to(tl.int32), count)
    tiles = tl.cdiv(count, BLOCK_ROWS)
    share = tl.num_programs(0) // tl.maximum(tiles, 1)
    number_of_pieces = tl.maximum(tl.minimum(share, padded_k // (LEAST_TILES * BLOCK_CODES)), 1)
    codes_per_piece = tl.cdiv(tl.cdiv(padded_k, number_of_pieces), BLOCK_CODES) * BLOCK_CODES
    for unit in range(pid, tiles * number_of_pieces, tl.num_programs(0)):
        block = unit // number_of_pieces
        piece = unit - block * number_of_pieces
        entry = block * BLOCK_ROWS + local
        listed = begin_of_list + entry
        row = tl.load(open_rows.rows + listed, mask=entry < count, other=0)
        ceiling = tl.load(open_rows.ceiling + listed, mask=entry < count, other=0.0)
        value, rest, index = resolve_piece(
            tile=common.row_tile(view=x, row=row, valid=entry < count, M=M),
            ceiling=ceiling,
            codebook=codebook,
            codes=codes,
            candidates=pieces.candidates + pid * BLOCK_ROWS * CANDIDATES,
            begin=piece * codes_per_piece,
            end=tl.minimum((piece + 1) * codes_per_piece, padded_k),
            is_whole=number_of_pieces == 1,
            K=K,
            programs=programs,
            column_mask=column_mask,
            D=D,
            PADDED_D=PADDED_D,
            plan=plan,
            config=config,
            bound=bound,
            INTERPRETED=INTERPRETED,
            PADDED_PROGRAMS=PADDED_PROGRAMS,
        )
        if number_of_pieces == 1:
            tl.store(indices + row, index, mask=entry < count)
        else:
            # No program has a second unit then.
            at = pid * BLOCK_ROWS + local
            tl.store(pieces.value + at, value)
            tl.store(pieces.rest + at, rest)
            tl.store(pieces.index + at, index)
            tl.debug_barrier()
            arrived = tl.atomic_add(pieces.tickets + block, 1, sem="acq_rel")
            if arrived == number_of_pieces - 1:
                best = tl.full((BLOCK_ROWS,), float("inf"), tl.float64)
                best_rest = best
                best_index = tl.zeros((BLOCK_ROWS,), tl.int32)
                for first in range(0, number_of_pieces, MERGED):
                    results = load_results(
                        value=pieces.value, rest=pieces.rest, index=pieces.index,
                        at=(block * number_of_pieces + first) * BLOCK_ROWS + local, stride=BLOCK_ROWS,
                        left=number_of_pieces - first, valid=local >= 0,
                    )  # fmt: skip
                    for i in tl.static_range(MERGED):
                        best, best_rest, best_index = common.nearest_exact(
                            value_a=best,
                            rest_a=best_rest,
                            index_a=best_index,
                            value_b=results[3 * i],
                            rest_b=results[3 * i + 1],
                            index_b=results[3 * i + 2],
                        )
                tl.store(indices + row, best_index, mask=entry < count)
