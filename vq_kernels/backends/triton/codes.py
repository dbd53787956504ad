"""The codebook as ``prepare.py`` leaves it for the search: parts, biases, and a table of extremes."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

# Rows of the table of extremes: float32 columns, norms in the scaled units of the stored codes.
LARGEST = tl.constexpr(0)  # norm over usable codes
SMALLEST = tl.constexpr(1)
RESIDUAL = tl.constexpr(2)  # |code - stored parts| / |code|
LOW_PART = tl.constexpr(3)  # |low part| / |code|
EXCLUDED_NORM = tl.constexpr(4)  # smallest norm of a finite code that is out of the parts' range
EXPONENT = tl.constexpr(5)  # log2 s
CENTER = tl.constexpr(6)  # s |c|
COLUMNS = tl.constexpr(8)


class Prepared(NamedTuple):
    """K' is K padded to a multiple of 128, D' is D padded to the search's chunks, P the programs."""

    high: Tensor  # [K', D'] float16 or the codes' dtype
    low: Tensor  # [K', D'], or high where there is one part
    tiles: Tensor  # high as hopper_search.cu copies it, 128 codes together; or high itself
    bias: Tensor  # [K'] float32
    center: Tensor  # [D'] float32
    extremes: Tensor  # [P, 8] float32
    square_high: Tensor  # [K] float64: sum of e^2 / 2 as an exact pair; [0] unless the search is exact
    square_low: Tensor  # [K] float64


@triton.jit
def largest_of(table, programs, column, BLOCK: tl.constexpr):
    """Maximum of a column of the table of extremes, none of which is negative."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BLOCK):
        line = start + tl.arange(0, BLOCK)
        total = tl.maximum(total, tl.load(table + line * COLUMNS + column, mask=line < programs, other=0.0))
    return tl.max(total)


@triton.jit
def smallest_of(table, programs, column, BLOCK: tl.constexpr):
    """Minimum of a column of the table of extremes."""
    total = tl.full((BLOCK,), float("inf"), tl.float32)
    for start in range(0, programs, BLOCK):
        line = start + tl.arange(0, BLOCK)
        at = table + line * COLUMNS + column
        total = tl.minimum(total, tl.load(at, mask=line < programs, other=float("inf")))
    return tl.min(total)


@triton.jit
def reduce_extremes(table, reduced, programs, BLOCK: tl.constexpr):
    """One line of extremes over the lines of all programs."""
    tl.store(reduced + LARGEST, largest_of(table=table, programs=programs, column=LARGEST, BLOCK=BLOCK))
    tl.store(reduced + RESIDUAL, largest_of(table=table, programs=programs, column=RESIDUAL, BLOCK=BLOCK))
    tl.store(reduced + LOW_PART, largest_of(table=table, programs=programs, column=LOW_PART, BLOCK=BLOCK))
    smallest = smallest_of(table=table, programs=programs, column=SMALLEST, BLOCK=BLOCK)
    tl.store(reduced + SMALLEST, smallest)
    excluded = smallest_of(table=table, programs=programs, column=EXCLUDED_NORM, BLOCK=BLOCK)
    tl.store(reduced + EXCLUDED_NORM, excluded)
    # The same in every line.
    tl.store(reduced + EXPONENT, tl.load(table + EXPONENT))
    tl.store(reduced + CENTER, tl.load(table + CENTER))
