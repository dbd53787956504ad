"""The score that decides (``base.py``): summed in float64 without error, in the order of the dimensions.

Device functions only. All numbers of a few dimensions are loaded before the first is used: one after the
other, each would wait for memory, which is most of the time of such a sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import common
from .common import FLOAT32_MAX

UNROLLED = 16  # dimensions that are loaded at once


@triton.jit
def as_pair(high, low):
    """(value, rest): a sum and what rounding has left of it, so that equal scores are equal pairs."""
    value = high + low
    b = value - high
    return value, (high - (value - b)) + (low - b)


@triton.jit
def load_numbers(at, valid, COUNT: tl.constexpr, VECTOR: tl.constexpr):
    """COUNT consecutive numbers from each address, a tuple of ``[CODES]``; four at a time with VECTOR."""
    numbers = ()
    if VECTOR:
        four = tl.arange(0, 4)
        for i in tl.static_range(COUNT // 4):
            loaded = tl.load(at[:, None] + (4 * i + four)[None, :], mask=valid[:, None], other=0.0)
            even, odd = tl.split(tl.reshape(loaded, (loaded.shape[0], 2, 2)))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            numbers = numbers + (first, second, third, fourth)  # type: ignore[assignment]
    else:
        for i in tl.static_range(COUNT):
            numbers = numbers + (tl.load(at + i, mask=valid, other=0.0),)  # type: ignore[assignment]
    return numbers


@triton.jit
def half_squares(
    at, valid, D: tl.constexpr, CODES: tl.constexpr, UNROLLED: tl.constexpr, VECTOR: tl.constexpr
):
    """Half the square norms of codes as a pair, and whether a number of theirs is not finite."""
    TAIL: tl.constexpr = D % UNROLLED
    high = tl.zeros((CODES,), tl.float64)
    low = high
    nonfinite = tl.zeros((CODES,), tl.int32)
    for start in range(0, D - TAIL, UNROLLED):
        high, low, nonfinite = add_squares(
            high=high, low=low, nonfinite=nonfinite, at=at + start, valid=valid, COUNT=UNROLLED, VECTOR=VECTOR
        )
    return add_squares(
        high=high, low=low, nonfinite=nonfinite, at=at + (D - TAIL), valid=valid, COUNT=TAIL, VECTOR=VECTOR
    )


@triton.jit
def add_squares(high, low, nonfinite, at, valid, COUNT: tl.constexpr, VECTOR: tl.constexpr):
    """:func:`half_squares` of COUNT numbers more."""
    numbers = load_numbers(at=at, valid=valid, COUNT=COUNT, VECTOR=VECTOR)
    for i in tl.static_range(COUNT):
        nonfinite = tl.where(tl.abs(numbers[i].to(tl.float32)) <= FLOAT32_MAX, nonfinite, 1)
        e = numbers[i].to(tl.float64)
        high, low = common.accumulate(high=high, low=low, term=0.5 * e * e)
    return high, low, nonfinite


@triton.jit
def add_products(high, low, x_at, e_at, stride_d, valid, unusable, COUNT: tl.constexpr):
    """The pair (high, low) minus the products of COUNT dimensions."""
    x_loaded = ()
    e_loaded = ()
    for i in tl.static_range(COUNT):
        x_loaded = x_loaded + (tl.load(x_at + i * stride_d, mask=valid, other=0.0),)  # type: ignore[assignment]
        e_loaded = e_loaded + (tl.load(e_at + i, mask=valid, other=0.0),)  # type: ignore[assignment]
    for i in tl.static_range(COUNT):
        e = tl.where(unusable, 0.0, e_loaded[i].to(tl.float64))
        high, low = common.accumulate(high=high, low=low, term=-(x_loaded[i].to(tl.float64) * e))
    return high, low


@triton.jit
def exact_score(
    tile, codebook, codes, code, valid, D: tl.constexpr, L2: tl.constexpr, UNROLLED: tl.constexpr = UNROLLED
):  # fmt: skip
    """Score of ``base.py`` as a pair, of R rows and ``[R, C]`` codes where valid: ``[R, C]``."""
    code = code.to(tl.int64)
    infinity = float("inf")
    square = tl.load(codes.square_high + code, mask=valid, other=infinity)
    unusable = square == infinity
    high = tl.where(unusable, 0.0, square)
    low = tl.load(codes.square_low + code, mask=valid, other=0.0)
    if not L2:
        high = high * 0.0
        low = low * 0.0
    # Both of one shape, so that no load has to be brought into another's layout.
    x_at = tile.data + tile.offset[:, None] + tl.zeros_like(code)
    e_at = codebook + code * D
    for _ in range(D // UNROLLED):
        high, low = add_products(
            high=high, low=low, x_at=x_at, e_at=e_at, stride_d=tile.stride_d, valid=valid,
            unusable=unusable, COUNT=UNROLLED,
        )  # fmt: skip
        x_at += UNROLLED * tile.stride_d
        e_at += UNROLLED
    high, low = add_products(
        high=high, low=low, x_at=x_at, e_at=e_at, stride_d=tile.stride_d, valid=valid,
        unusable=unusable, COUNT=D % UNROLLED,
    )  # fmt: skip
    value, rest = as_pair(high=high, low=low)
    return tl.where(unusable, infinity, value), tl.where(unusable, infinity, rest)


@triton.jit
def subtract_products(
    high_a, low_a, high_b, low_b, nonfinite_a, nonfinite_b, at, a_at, b_at, stride_d, valid, unusable,
    COUNT: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The pairs of two rows minus the products of COUNT dimensions, and whether a number is not finite."""
    numbers = load_numbers(at=at, valid=valid, COUNT=COUNT, VECTOR=VECTOR)
    of_a = ()
    of_b = ()
    for i in tl.static_range(COUNT):
        of_a = of_a + (tl.load(a_at + i * stride_d),)  # type: ignore[assignment]
        of_b = of_b + (tl.load(b_at + i * stride_d),)  # type: ignore[assignment]
    for i in tl.static_range(COUNT):
        e = tl.where(unusable, 0.0, numbers[i].to(tl.float64))
        nonfinite_a = tl.where(tl.abs(of_a[i].to(tl.float32)) <= FLOAT32_MAX, nonfinite_a, 1)
        nonfinite_b = tl.where(tl.abs(of_b[i].to(tl.float32)) <= FLOAT32_MAX, nonfinite_b, 1)
        high_a, low_a = common.accumulate(high=high_a, low=low_a, term=-(of_a[i].to(tl.float64) * e))
        high_b, low_b = common.accumulate(high=high_b, low=low_b, term=-(of_b[i].to(tl.float64) * e))
    return high_a, low_a, high_b, low_b, nonfinite_a, nonfinite_b
