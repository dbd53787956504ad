"""The matrix product of a tile of rows with a tile of codes, from one, two or three products of parts."""

from __future__ import annotations

import triton
import triton.language as tl

from . import common, rows


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
