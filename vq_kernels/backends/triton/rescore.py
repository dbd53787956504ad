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
def exact_score(
    x, codebook, square_high, square_low, offset, code, keep, stride_d, D: tl.constexpr, L2: tl.constexpr
):
    """Score of ``base.py`` as a pair; rows ``[R, 1]`` and codes ``[1 or R, C]`` give ``[R, C]``."""
    code = code.to(tl.int64)
    infinity = float("inf")
    square = tl.load(square_high + code, mask=keep, other=infinity)
    unusable = square == infinity
    high = tl.where(unusable, 0.0, square)
    low = tl.load(square_low + code, mask=keep, other=0.0)
    if not L2:
        high = high * 0.0
        low = low * 0.0
    x_at = x + offset
    e_at = codebook + code * D
    for _ in range(D):
        a = tl.load(x_at, mask=keep, other=0.0).to(tl.float64)
        e = tl.load(e_at, mask=keep, other=0.0).to(tl.float64)
        e = tl.where(unusable, 0.0, e)
        high, low = common.accumulate(high, low, -(a * e))
        x_at += stride_d
        e_at += 1
    value = high + low
    b = value - high
    rest = (high - (value - b)) + (low - b)
    return tl.where(unusable, infinity, value), tl.where(unusable, infinity, rest)


@triton.jit
def rescore_rows(
    x, codebook, high, low, bias, center, extremes, square_high, square_low, candidates,
    row, keep, limit, M, K, padded_k, stride_b, stride_m, stride_d,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CODE_PARTS: tl.constexpr, CENTERED: tl.constexpr,
    L2: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Index of the nearest code of 16 rows; ``candidates`` is this program's scratch, ``[16, 8]``."""
    CHUNKS: tl.constexpr = PADDED_D // CHUNK
    offset = common.row_offset(row, M, stride_b, stride_m)
    exponent = rows.codes_exponent(extremes)
    finite, _in_range, p, t = rows.measure(
        x, offset, keep, stride_d, center, exponent, D, CHUNK, CHUNKS, TILE, SPLIT, CENTERED
    )
    column = tl.arange(0, BK)
    local = tl.arange(0, TILE)
    count = tl.zeros((TILE,), tl.int32)
    firsts, seconds = all_parts(
        x, offset, keep, finite, p, stride_d, center, high.dtype.element_ty,
        D, PADDED_D, CHUNK, RESIDENT, SPLIT, PARTS, CENTERED,
    )  # fmt: skip
    for tile in range(0, padded_k, BK):
        code_bias = tl.load(bias + tile + column)
        acc = product(
            firsts, seconds, high, low, x, offset, keep, finite, p, stride_d, center, tile,
            D, PADDED_D, CHUNK, RESIDENT, TILE, BK, SPLIT, PARTS, CODE_PARTS, CENTERED, INTERPRETED,
            True,  # 64-bit offsets, for which this pass has the registers
        )  # fmt: skip
        score = code_bias[None, :] * t[:, None] + acc
        # Written so that a NaN on either side leaves the code in.
        out = (score > limit[:, None]) | ((tile + column) >= K)[None, :] | (keep == 0)[:, None]
        found = tl.where(out, 0, 1)
        if tl.max(found) > 0:
            slot = count[:, None] + tl.cumsum(found, 1) - 1
            fits = (found > 0) & (slot < CANDIDATES)
            at = candidates + local[:, None] * CANDIDATES + slot
            tl.store(at, (tile + column)[None, :] + tl.zeros_like(found), mask=fits)
            count += tl.sum(found, 1)
    tl.debug_barrier()

    slot = tl.arange(0, CANDIDATES)
    few = (slot[None, :] < count[:, None]) & (count <= CANDIDATES)[:, None]
    code = tl.load(candidates + local[:, None] * CANDIDATES + slot[None, :], mask=few, other=0)
    value, rest = exact_score(
        x, codebook, square_high, square_low, offset[:, None], code, few, stride_d, D, L2
    )
    value, rest, index = common.nearest_of_exact(value, rest, code)
    if tl.max(count) > CANDIDATES:
        many = count > CANDIDATES
        best = tl.full((TILE,), float("inf"), tl.float64)
        best_rest = tl.full((TILE,), float("inf"), tl.float64)
        best_index = tl.zeros((TILE,), tl.int32)
        for tile in range(0, K, 32):
            codes = tile + tl.arange(0, 32)
            valid = many[:, None] & (codes < K)[None, :]
            value2, rest2 = exact_score(
                x, codebook, square_high, square_low, offset[:, None],
                tl.broadcast_to(codes[None, :], (TILE, 32)), valid, stride_d, D, L2,
            )  # fmt: skip
            indices2 = tl.broadcast_to(codes[None, :], (TILE, 32))
            value2, rest2, indices2 = common.nearest_of_exact(value2, rest2, indices2)
            best, best_rest, best_index = common.nearest_exact(
                best, best_rest, best_index, value2, rest2, indices2
            )
        index = tl.where(many, best_index, index)
    # The scratch is used again for the next rows.
    tl.debug_barrier()
    return tl.where(index < K, index, 0)


@triton.jit
def settle(
    x, codebook, high, low, bias, center, extremes, square_high, square_low, candidates, mask,
    value_in, index_in, second_in, bound_in, ambiguous, threshold, count, start,
    N, M, K, padded_k, stride_b, stride_m, stride_d,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CODE_PARTS: tl.constexpr, CENTERED: tl.constexpr,
    L2: tl.constexpr, EXACT: tl.constexpr, HAS_MASK: tl.constexpr, SPLITS: tl.constexpr,
    INTERPRETED: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """(row, there, index) of the 16 entries from ``start`` on: of the list of open rows, or, after a
    divided search, of the rows themselves, whose partial results are first merged in code order."""
    entry = start + tl.arange(0, TILE)
    there = entry < count
    index = tl.zeros((TILE,), tl.int32)
    if SPLITS == 1:
        row = tl.load(ambiguous + entry, mask=there, other=0).to(tl.int64)
        limit = tl.load(threshold + entry, mask=there, other=0.0)
        open_row = there
    else:
        row = entry.to(tl.int64)
        keep = there
        if HAS_MASK:
            keep = tl.load(mask + row, mask=there, other=0) != 0
        value = tl.full((TILE,), float("inf"), tl.float32)
        second = tl.full((TILE,), float("inf"), tl.float32)
        for split in range(SPLITS):
            at = split * N + row
            v = tl.load(value_in + at, mask=there, other=float("inf"))
            i = tl.load(index_in + at, mask=there, other=0)
            s = v
            if EXACT:
                s = tl.load(second_in + at, mask=there, other=float("inf"))
            value, index, second = common.nearest_and_second(value, index, second, v, i, s)
        bound = tl.load(bound_in + row, mask=there, other=-1.0)
        finite = (bound < 0) == 0
        index = tl.where(finite, index, 0)
        certain, limit = certify(value, second, bound, DELTA)
        open_row = keep & finite & (certain == 0)
        index = tl.where(keep, index, MASKED)
    if EXACT:
        if tl.max(open_row.to(tl.int32)) > 0:
            exact = rescore_rows(
                x, codebook, high, low, bias, center, extremes, square_high, square_low, candidates,
                row, open_row, limit, M, K, padded_k, stride_b, stride_m, stride_d,
                D, PADDED_D, CHUNK, RESIDENT, BK, SPLIT, PARTS, CODE_PARTS, CENTERED, L2, INTERPRETED,
            )  # fmt: skip
            index = tl.where(open_row, exact, index)
    return row, there, index
