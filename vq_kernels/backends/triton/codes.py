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
    bias: Tensor  # [K'] float32
    center: Tensor  # [D'] float32
    extremes: Tensor  # [P, 8] float32
    square_high: Tensor  # [K] float64: sum of e^2 / 2 as an exact pair; [0] unless the search is exact
    square_low: Tensor  # [K] float64


@triton.jit
def reduce_column(table, programs, column, IS_MINIMUM: tl.constexpr, BLOCK: tl.constexpr):
    """Minimum or maximum of a column of the table of extremes."""
    start_value = float("inf") if IS_MINIMUM else 0.0
    total = tl.full((BLOCK,), start_value, tl.float32)
    for start in range(0, programs, BLOCK):
        line = start + tl.arange(0, BLOCK)
        value = tl.load(table + line * COLUMNS + column, mask=line < programs, other=start_value)
        total = tl.minimum(total, value) if IS_MINIMUM else tl.maximum(total, value)
    return tl.min(total) if IS_MINIMUM else tl.max(total)


@triton.jit
def reduce_extremes(table, reduced, programs, BLOCK: tl.constexpr):
    """One line of extremes over the lines of all programs."""
    for column in tl.static_range(EXPONENT):
        is_minimum: tl.constexpr = (column == SMALLEST) | (column == EXCLUDED_NORM)
        value = reduce_column(
            table=table, programs=programs, column=column, IS_MINIMUM=is_minimum, BLOCK=BLOCK
        )
        tl.store(reduced + column, value)
    tl.store(reduced + EXPONENT, tl.load(table + EXPONENT))
    tl.store(reduced + CENTER, tl.load(table + CENTER))
