"""Second pass of the exact search: rows that the first pass left open, decided by their exact scores.

A program takes 16 such rows, finds again, by the first pass's own arithmetic and bound, the codes
that could still win, and scores these alone in float64 with an error-free summation in the order
that ``base.py`` defines. A row with more than 8 candidates (equal codes, or no finite bound) is
scored against all codes. How many rows there are stays on the device: the grid is as large as the
GPU, and every program loops up to the counter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import common, rows
from .common import MASKED
from .search import all_parts, certify, product

TILE = tl.constexpr(16)
CANDIDATES = tl.constexpr(8)


@triton.jit
def exact_score(tile, codebook, codes, code, valid, D: tl.constexpr, L2: tl.constexpr):
    """Score of ``base.py`` as a pair, of R rows and ``[1 or R, C]`` codes where valid: ``[R, C]``."""
    code = code.to(tl.int64)
    infinity = float("inf")
    square = tl.load(codes.square_high + code, mask=valid, other=infinity)
    unusable = square == infinity
    high = tl.where(unusable, 0.0, square)
    low = tl.load(codes.square_low + code, mask=valid, other=0.0)
    if not L2:
        high = high * 0.0
        low = low * 0.0
    x_at = tile.data + tile.offset[:, None]
    e_at = codebook + code * D
    for _ in range(D):
        a = tl.load(x_at, mask=valid, other=0.0).to(tl.float64)
        e = tl.load(e_at, mask=valid, other=0.0).to(tl.float64)
        e = tl.where(unusable, 0.0, e)
        high, low = common.accumulate(high=high, low=low, term=-(a * e))
        x_at += tile.stride_d
        e_at += 1
    value = high + low
    b = value - high
    rest = (high - (value - b)) + (low - b)
    return tl.where(unusable, infinity, value), tl.where(unusable, infinity, rest)


@triton.jit
def rescore_rows(
    tile, threshold, codebook, codes, candidates, K, padded_k,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Index of the nearest code of 16 rows; ``candidates`` is this program's scratch, ``[16, 8]``."""
    BLOCK_CODES: tl.constexpr = config.codes
    scales = rows.row_scales(tile=tile, codes=codes, D=D, PADDED_D=PADDED_D, plan=plan, config=config)
    column = tl.arange(0, BLOCK_CODES)
    local = tl.arange(0, TILE)
    count = tl.zeros((TILE,), tl.int32)
    high_parts, low_parts = all_parts(
        tile=tile, codes=codes, scales=scales, D=D, PADDED_D=PADDED_D, plan=plan, config=config
    )
    for first_code in range(0, padded_k, BLOCK_CODES):
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

    slot = tl.arange(0, CANDIDATES)
    few = (slot[None, :] < count[:, None]) & (count <= CANDIDATES)[:, None]
    code = tl.load(candidates + local[:, None] * CANDIDATES + slot[None, :], mask=few, other=0)
    value, rest = exact_score(
        tile=tile, codebook=codebook, codes=codes, code=code, valid=few, D=D, L2=plan.l2
    )
    value, rest, index = common.nearest_of_exact(value=value, rest=rest, index=code)
    if tl.max(count) > CANDIDATES:
        many = count > CANDIDATES
        best = tl.full((TILE,), float("inf"), tl.float64)
        best_rest = tl.full((TILE,), float("inf"), tl.float64)
        best_index = tl.zeros((TILE,), tl.int32)
        for first_code in range(0, K, 32):
            all_codes = first_code + tl.arange(0, 32)
            every_code = tl.broadcast_to(all_codes[None, :], (TILE, 32))
            every_value, every_rest = exact_score(
                tile=tile, codebook=codebook, codes=codes, code=every_code,
                valid=many[:, None] & (all_codes < K)[None, :], D=D, L2=plan.l2,
            )  # fmt: skip
            value_b, rest_b, index_b = common.nearest_of_exact(
                value=every_value, rest=every_rest, index=every_code
            )
            best, best_rest, best_index = common.nearest_exact(
                value_a=best, rest_a=best_rest, index_a=best_index,
                value_b=value_b, rest_b=rest_b, index_b=index_b,
            )  # fmt: skip
        index = tl.where(many, best_index, index)
    # The scratch is used again for the next rows.
    tl.debug_barrier()
    return tl.where(index < K, index, 0)


@triton.jit
def resolve(
    x, mask, codebook, codes, partial, candidates, count, start, N, M, K, padded_k,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """(row, row_in_range, index) of the 16 entries from ``start`` on: of the list of open rows, or, after a
    divided search, of the rows themselves, whose partial results are first merged in code order."""
    entry = start + tl.arange(0, TILE)
    row_in_range = entry < count
    index = tl.zeros((TILE,), tl.int32)
    if SPLITS == 1:
        row = tl.load(partial.ambiguous + entry, mask=row_in_range, other=0).to(tl.int64)
        threshold = tl.load(partial.threshold + entry, mask=row_in_range, other=0.0)
        is_open = row_in_range
    else:
        row = entry.to(tl.int64)
        valid = row_in_range
        if mask is not None:
            valid = tl.load(mask + row, mask=row_in_range, other=0) != 0
        value = tl.full((TILE,), float("inf"), tl.float32)
        second_best = tl.full((TILE,), float("inf"), tl.float32)
        for split in range(SPLITS):
            at = split * N + row
            split_value = tl.load(partial.value + at, mask=row_in_range, other=float("inf"))
            split_index = tl.load(partial.indices + at, mask=row_in_range, other=0)
            split_second = split_value
            if plan.exact:
                split_second = tl.load(partial.second_best + at, mask=row_in_range, other=float("inf"))
            value, index, second_best = common.nearest_and_second(
                value_a=value, index_a=index, second_a=second_best,
                value_b=split_value, index_b=split_index, second_b=split_second,
            )  # fmt: skip
        row_bound = tl.load(partial.row_bound + row, mask=row_in_range, other=-1.0)
        finite = (row_bound < 0) == 0
        index = tl.where(finite, index, 0)
        certain, threshold = certify(
            value=value, second_best=second_best, row_bound=row_bound, DELTA=bound.delta
        )
        is_open = valid & finite & (certain == 0)
        index = tl.where(valid, index, MASKED)
    if plan.exact:
        if tl.max(is_open.to(tl.int32)) > 0:
            exact = rescore_rows(
                tile=common.row_tile(view=x, row=row, valid=is_open, M=M), threshold=threshold,
                codebook=codebook, codes=codes, candidates=candidates, K=K, padded_k=padded_k,
                D=D, PADDED_D=PADDED_D, plan=plan, config=config, INTERPRETED=INTERPRETED,
            )  # fmt: skip
            index = tl.where(is_open, exact, index)
    return row, row_in_range, index
