"""Rows of x as the search wants them: read by their strides, centred, scaled, split; their error bound.

A row z (centred or not) is multiplied by a power of two p that brings its largest entry to 2^13
or just above, so that float16 parts lose nothing to its narrow range; t = p / s relates it to the
codes' scale s. Device functions only, shared by the search and the second pass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import common
from .common import FLOAT32_MAX
from .prepare import CENTER, COLUMNS, EXCLUDED_NORM, EXPONENT, LARGEST, LOW_PART, RESIDUAL, SMALLEST


@triton.jit
def read_raw(x, offset, keep, d, stride_d, D: tl.constexpr):
    """A chunk of rows as it lies in memory, zero outside."""
    inside = keep[:, None] & (d < D)[None, :]
    return tl.load(x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=inside, other=0.0)


@triton.jit
def read(x, offset, keep, d, stride_d, center, D: tl.constexpr, CENTERED: tl.constexpr):
    """A chunk of rows in float32, zero outside, minus the centre: ``[rows, CHUNK]``."""
    inside = keep[:, None] & (d < D)[None, :]
    z = tl.load(x + offset[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=inside, other=0.0)
    z = z.to(tl.float32)
    if CENTERED:
        z = tl.where(inside, z - tl.load(center + d)[None, :], 0.0)
    return z


@triton.jit
def split(z, p, usable, dtype: tl.constexpr, PARTS: tl.constexpr):
    """The scaled rows and their parts; the second is the first where there is one."""
    scaled = tl.where(usable[:, None], z * p[:, None], 0.0)
    first = scaled.to(dtype)
    second = first
    if PARTS == 2:
        second = (scaled - first.to(tl.float32)).to(dtype)
    return scaled, first, second


@triton.jit
def measure(
    x, offset, keep, stride_d, center, exponent,
    D: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BN: tl.constexpr,
    SPLIT: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """(finite, in range, p, t) of each row; exponent is log2 of the codes' scale."""
    widest = tl.zeros((BN,), tl.float32)
    nonfinite = tl.zeros((BN,), tl.int32)
    for c in range(CHUNKS):
        z = read(x, offset, keep, c * CHUNK + tl.arange(0, CHUNK), stride_d, center, D, CENTERED)
        nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(z) <= FLOAT32_MAX, 0, 1), 1))
        widest = tl.maximum(widest, tl.max(tl.where(tl.abs(z) <= FLOAT32_MAX, tl.abs(z), 0.0), 1))
    if SPLIT:
        row_exponent = tl.minimum(13 - common.exponent_of(widest), exponent + 15)
        relative = tl.maximum(row_exponent - exponent, -40)
        in_range = (widest < 2.0**100) & (row_exponent - exponent >= -40)
        p = common.power_of_two(row_exponent)
        t = common.power_of_two(relative)
    else:
        # Squares of smaller numbers would vanish from the norms that the bound is made of.
        in_range = (widest < 2.0**50) & ((widest > 2.0**-40) | (widest == 0))
        p = tl.full((BN,), 1.0, tl.float32)
        # Always one; the compiler must not know, or it makes the search's constants of it (search.py).
        t = tl.where(widest >= 0, 1.0, 2.0)
    return nonfinite == 0, in_range, p, t


@triton.jit
def norms(
    x, offset, keep, usable, p, stride_d, center, dtype: tl.constexpr,
    D: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BN: tl.constexpr,
    PARTS: tl.constexpr, CENTERED: tl.constexpr,
):  # fmt: skip
    """Norms of the scaled rows, of what their parts miss, and of their second parts."""
    whole = tl.zeros((BN,), tl.float32)
    missed = tl.zeros((BN,), tl.float32)
    low = tl.zeros((BN,), tl.float32)
    for c in range(CHUNKS):
        z = read(x, offset, keep, c * CHUNK + tl.arange(0, CHUNK), stride_d, center, D, CENTERED)
        scaled, first, second = split(z, p, usable, dtype, PARTS)
        rest = scaled - first.to(tl.float32)
        if PARTS == 2:
            rest -= second.to(tl.float32)
            low += tl.sum(second.to(tl.float32) * second.to(tl.float32), 1)
        whole += tl.sum(scaled * scaled, 1)
        missed += tl.sum(rest * rest, 1)
    return tl.sqrt(whole), tl.sqrt(missed), tl.sqrt(low)


@triton.jit
def codes_exponent(extremes):
    """log2 of the codes' scale."""
    return tl.load(extremes + EXPONENT).to(tl.int32)


@triton.jit
def error_bound(
    extremes, programs, whole, missed, low, t,
    MAIN: tl.constexpr, MINOR: tl.constexpr, CONTRACT: tl.constexpr, SLACK: tl.constexpr,
    BOUND_SCALE: tl.constexpr, L2: tl.constexpr, CENTERED: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Upper bound on |computed - exact| of every score that could win, infinite where none is known.

    ``docs/certificate.md`` derives it. MAIN bounds the accumulation of the products of the first
    parts, MINOR that of the products with a second part, CONTRACT the pair that decides in the end.
    """
    line = tl.arange(0, LINES)
    there = line < programs
    table = extremes + line * COLUMNS
    largest = tl.max(tl.load(table + LARGEST, mask=there, other=0.0))
    smallest = tl.min(tl.load(table + SMALLEST, mask=there, other=float("inf")))
    residual = tl.max(tl.load(table + RESIDUAL, mask=there, other=0.0))
    low_part = tl.max(tl.load(table + LOW_PART, mask=there, other=0.0))
    excluded = tl.min(tl.load(table + EXCLUDED_NORM, mask=there, other=float("inf")))
    center = tl.minimum(tl.load(extremes + CENTER), 2.0**126)
    offset = center
    if CENTERED or not L2:
        offset = offset * 0.0
    # One value for each row, since the interpreter cannot broadcast a comparison of scalars.
    each = whole * 0.0
    if L2:
        # A code further from the centre than twice the row (plus the innermost code) cannot win;
        # twice that leaves room for its score's own error, so one outlier does not loosen the bound.
        # The pair sees that only of codes that are not tiny beside the centre.
        reach = whole / t + offset
        seen = center * 2.0**-30
        norm = tl.minimum(largest, tl.maximum(4 * reach + 2 * smallest, seen))
        known = excluded > tl.maximum(2 * reach + smallest, seen) * SLACK
        bias = t * (0.5 * norm + offset) * norm
    else:
        norm = each + largest
        known = (each + excluded) == float("inf")
        bias = each
    rounding = 2.0**-23
    if CENTERED:
        rounding = 2.0**-23 + 2.0**-24
    error = whole * norm * (MAIN + residual + rounding + MINOR * low_part)
    error += norm * (missed + low * (low_part + MINOR)) + bias * 2.0**-23
    span = whole / t + norm + 2 * center
    error += (CONTRACT * span) * (t * span)
    known = known & ((each + tl.maximum(residual, low_part)) < 2.0**-5)
    return tl.where(known, BOUND_SCALE * (error * SLACK * SLACK + 2.0**-100), float("inf"))
