"""Rows of x as the search wants them: read by their strides, centred, scaled, split; their error bound.

A row z (centred or not) is multiplied by a power of two, the row scale p, that brings its largest
entry to 2^13 or just above, so that float16 parts lose nothing to its narrow range; the score scale
t = p / s relates it to the codes' scale s. Device functions only, shared by the search and the second pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import common
from .codes import CENTER, COLUMNS, EXCLUDED_NORM, EXPONENT, LARGEST, LOW_PART, RESIDUAL, SMALLEST
from .common import FLOAT32_MAX


class RowScales(NamedTuple):
    """What the search knows of a tile of rows before any product, ``[BLOCK_ROWS]`` each."""

    finite: Any  # neither NaN nor infinity
    in_range: Any  # of the parts
    row_scale: Any
    score_scale: Any


class RowNorms(NamedTuple):
    """Norms of scaled rows, of what their parts miss, and of their second parts, ``[BLOCK_ROWS]`` each."""

    row_norm: Any
    residual_norm: Any
    low_norm: Any


@triton.constexpr_function
def chunk(padded_dim, depth, reading):
    """Numbers of a row that are looked at together: ``reading`` where they divide it, else ``depth``."""
    return reading if reading and padded_dim % reading == 0 else depth


@triton.jit
def read(tile, center, d, D: tl.constexpr, CENTERED: tl.constexpr):
    """A chunk of rows in float32, zero outside, minus the centre: ``[BLOCK_ROWS, BLOCK_DIM]``."""
    z = common.load_chunk(tile=tile, d=d, D=D).to(tl.float32)
    if CENTERED:
        in_bounds = tile.valid[:, None] & (d < D)[None, :]
        z = tl.where(in_bounds, z - tl.load(center + d)[None, :], 0.0)
    return z


@triton.jit
def split(z, row_scale, finite, dtype: tl.constexpr, PARTS: tl.constexpr):
    """(scaled rows, high part, low part); the low part is the high one where there is one part."""
    scaled = tl.where(finite[:, None], z * row_scale[:, None], 0.0)
    high_part = scaled.to(dtype)
    low_part = high_part
    if PARTS == 2:
        low_part = (scaled - high_part.to(tl.float32)).to(dtype)
    return scaled, high_part, low_part


@triton.jit
def codes_exponent(extremes):
    """log2 of the codes' scale."""
    return tl.load(extremes + EXPONENT).to(tl.int32)


@triton.jit
def row_scales(
    tile, codes, D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr
):
    """The :class:`RowScales` of a tile of rows."""
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_DIM: tl.constexpr = chunk(PADDED_D, config.depth, config.reading)
    exponent = codes_exponent(codes.extremes)
    widest = tl.zeros((BLOCK_ROWS,), tl.float32)
    nonfinite = tl.zeros((BLOCK_ROWS,), tl.int32)
    for c in range(PADDED_D // BLOCK_DIM):
        d = c * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
        z = read(tile=tile, center=codes.center, d=d, D=D, CENTERED=plan.centered_rows)
        nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(z) <= FLOAT32_MAX, 0, 1), 1))
        widest = tl.maximum(widest, tl.max(tl.where(tl.abs(z) <= FLOAT32_MAX, tl.abs(z), 0.0), 1))
    if plan.split:
        row_exponent = tl.minimum(13 - common.exponent_of(widest), exponent + 15)
        relative = tl.maximum(row_exponent - exponent, -40)
        in_range = (widest < 2.0**100) & (row_exponent - exponent >= -40)
        row_scale = common.power_of_two(row_exponent)
        score_scale = common.power_of_two(relative)
    else:
        # Squares of smaller numbers would vanish from the norms that the bound is made of.
        in_range = (widest < 2.0**50) & ((widest > 2.0**-40) | (widest == 0))
        row_scale = tl.full((BLOCK_ROWS,), 1.0, tl.float32)
        # Always one; the compiler must not know, or it makes the search's constants of it (search.py).
        score_scale = tl.where(widest >= 0, 1.0, 2.0)
    return RowScales(nonfinite == 0, in_range, row_scale, score_scale)


@triton.jit
def largest_entry(
    tile, finite, D: tl.constexpr, PADDED_D: tl.constexpr, config: tl.constexpr
):  # fmt: skip
    """The largest |x| of a tile's finite rows: it sets the unit of the deterministic sums (statistics.py)."""
    BLOCK_DIM: tl.constexpr = chunk(PADDED_D, config.depth, config.reading)
    largest = tl.zeros((), tl.float32)
    for c in range(PADDED_D // BLOCK_DIM):
        raw = common.load_chunk(tile=tile, d=c * BLOCK_DIM + tl.arange(0, BLOCK_DIM), D=D).to(tl.float32)
        largest = tl.maximum(largest, tl.max(tl.where(finite[:, None], tl.abs(raw), 0.0)))
    return largest


@triton.jit
def row_norms(
    tile, codes, scales, D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr
):  # fmt: skip
    """The :class:`RowNorms` of a tile of rows."""
    BLOCK_ROWS: tl.constexpr = config.rows
    BLOCK_DIM: tl.constexpr = chunk(PADDED_D, config.depth, config.reading)
    PARTS: tl.constexpr = plan.parts
    dtype: tl.constexpr = codes.high.dtype.element_ty
    row_square = tl.zeros((BLOCK_ROWS,), tl.float32)
    residual_square = tl.zeros((BLOCK_ROWS,), tl.float32)
    low_square = tl.zeros((BLOCK_ROWS,), tl.float32)
    for c in range(PADDED_D // BLOCK_DIM):
        d = c * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
        z = read(tile=tile, center=codes.center, d=d, D=D, CENTERED=plan.centered_rows)
        scaled, high_part, low_part = split(
            z=z, row_scale=scales.row_scale, finite=scales.finite, dtype=dtype, PARTS=PARTS
        )
        rest = scaled - high_part.to(tl.float32)
        if PARTS == 2:
            rest -= low_part.to(tl.float32)
            low_square += tl.sum(low_part.to(tl.float32) * low_part.to(tl.float32), 1)
        row_square += tl.sum(scaled * scaled, 1)
        residual_square += tl.sum(rest * rest, 1)
    return RowNorms(tl.sqrt(row_square), tl.sqrt(residual_square), tl.sqrt(low_square))


@triton.jit
def error_bound(
    norms, score_scale, extremes, programs,
    plan: tl.constexpr, bound: tl.constexpr, PADDED_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Upper bound on |computed - exact| of every score that could win, infinite where none is known.

    ``docs/certificate.md`` derives it. ``bound.main`` bounds the accumulation of the products of the
    high parts, ``bound.minor`` that of the products with a low part, ``bound.contract`` the pair that
    decides in the end.
    """
    L2: tl.constexpr = plan.l2
    CENTERED: tl.constexpr = plan.centered_rows
    MAIN: tl.constexpr = bound.main
    MINOR: tl.constexpr = bound.minor
    CONTRACT: tl.constexpr = bound.contract
    SLACK: tl.constexpr = bound.slack
    SCALE: tl.constexpr = bound.scale
    line = tl.arange(0, PADDED_PROGRAMS)
    written = line < programs
    table = extremes + line * COLUMNS
    largest = tl.max(tl.load(table + LARGEST, mask=written, other=0.0))
    smallest = tl.min(tl.load(table + SMALLEST, mask=written, other=float("inf")))
    residual = tl.max(tl.load(table + RESIDUAL, mask=written, other=0.0))
    low_part = tl.max(tl.load(table + LOW_PART, mask=written, other=0.0))
    excluded = tl.min(tl.load(table + EXCLUDED_NORM, mask=written, other=float("inf")))
    center = tl.minimum(tl.load(extremes + CENTER), 2.0**126)
    offset = center
    if CENTERED or not L2:
        offset = offset * 0.0
    # One value for each row, since the interpreter cannot broadcast a comparison of scalars.
    zero = norms.row_norm * 0.0
    if L2:
        # A code further from the centre than twice the row (plus the innermost code) cannot win;
        # twice that leaves room for its score's own error, so one outlier does not loosen the bound.
        # The pair sees that only of codes that are not tiny beside the centre.
        reach = norms.row_norm / score_scale + offset
        seen = center * 2.0**-30
        norm = tl.minimum(largest, tl.maximum(4 * reach + 2 * smallest, seen))
        known = excluded > tl.maximum(2 * reach + smallest, seen) * SLACK
        bias = score_scale * (0.5 * norm + offset) * norm
    else:
        norm = zero + largest
        known = (zero + excluded) == float("inf")
        bias = zero
    if plan.code_parts == 1:
        # The low part, if there is one, is not used.
        residual = residual + low_part
        low_part = low_part * 0.0
    rounding = 2.0**-23
    if CENTERED:
        rounding = 2.0**-23 + 2.0**-24
    error = norms.row_norm * norm * (MAIN + residual + rounding + MINOR * low_part)
    error += norm * (norms.residual_norm + norms.low_norm * (low_part + MINOR)) + bias * 2.0**-23
    span = norms.row_norm / score_scale + norm + 2 * center
    error += (CONTRACT * span) * (score_scale * span)
    known = known & ((zero + tl.maximum(residual, low_part)) < 2.0**-5)
    return tl.where(known, SCALE * (error * SLACK * SLACK + 2.0**-100), float("inf"))
