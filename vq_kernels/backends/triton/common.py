"""What the kernels share: constants, row addressing, powers of two, and the reductions' combine functions.

Kernels and device functions take what belongs together as one named tuple: pointers and strides as
an argument, numbers known at compile time as one ``tl.constexpr``. Arguments of kernels hold no tuple
within a tuple: Triton 3.6 loses the numbers there that it specialises for, such as a stride of 1. Nor
does it compare a tuple that holds None with None, so that a kernel is told by a flag of a missing view.
Device functions are called by keyword.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Bias of a code that must never win (padding, non-finite, out of range): finite, so that it stays
# comparable after the multiplication by a row's power of two, and above every real score.
EXCLUDED = tl.constexpr(2.0**100)
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)

# Slots of the int64 counters of a call, zeroed by prepare.py: open rows, those that the middle pass leaves
# open, the bits of the largest |x|, unmasked rows, and how many programs of a launch have arrived.
OPEN_SLOT = tl.constexpr(0)
STILL_OPEN_SLOT = tl.constexpr(5)
RANGE_SLOT = tl.constexpr(1)
VALID_SLOT = tl.constexpr(2)
EXCLUDE_TICKET = tl.constexpr(3)
WRITE_TICKET = tl.constexpr(4)
HEADER = tl.constexpr(8)

# What the search stores instead of a code's index.
MASKED = tl.constexpr(-1)
AMBIGUOUS = tl.constexpr(-2)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, decided when this module was imported."""
    return not isinstance(row_offset, triton.runtime.JITFunction)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 2 in the interpreter, so that loops over programs are exercised."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as 10 * major + minor; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n >= 1; Triton's own function takes a microsecond."""
    return 1 << (n - 1).bit_length()


# Made anew they take as long as the allocation of a tensor.
_constant = functools.lru_cache(tl.constexpr)


class View(NamedTuple):
    """A ``[B, M, D]`` tensor with any strides; its row number ``b * M + m`` is what kernels count by."""

    data: Any
    stride_b: Any
    stride_m: Any
    stride_d: Any


def make_view(x: Tensor) -> View:
    """A tensor as kernels take it: the data and the element strides.

    Rows that follow one another without gaps have their stride known at compile time, whatever D is: the
    compiler then sees how they are aligned, and loads several numbers at once. ``stride_b`` is None where
    all rows are as far apart as those of a batch.
    """
    B, M, D = x.shape
    stride_b, stride_m, stride_d = x.stride()
    if stride_d == 1 and stride_m == D:
        stride_m = _constant(D)
    return View(x, None if B == 1 or stride_b == M * x.stride(1) else stride_b, stride_m, stride_d)


def loads_vectors(x: Tensor) -> bool:
    """Whether Triton sees that rows of x can be loaded 16 bytes at a time, from what it is told of them."""
    B, M, D = x.shape
    stride_b, stride_m, stride_d = x.stride()
    batches = B == 1 or stride_b % 16 == 0
    if x.data_ptr() % 16:
        return False
    if stride_d == 1 and stride_m == D:
        return D * x.element_size() % 16 == 0 and (batches or stride_b == M * D)
    if stride_d == 1:
        return stride_m % 16 == 0 and batches
    return stride_m == 1 and stride_d % 16 == 0 and M % 16 == 0 and batches


class RowTile(NamedTuple):
    """A tile of rows inside a kernel: which of them count, and where each begins."""

    data: Any
    stride_d: Any
    offset: Any  # [BLOCK_ROWS] int64
    valid: Any  # [BLOCK_ROWS] bool


@triton.jit
def row_offset(view, row, M):
    """Element offset of rows b * M + m, int64; ``row`` is int32, as a division in 64 bits is a long one."""
    if view.stride_b is None:
        offset = row.to(tl.int64) * view.stride_m
    else:
        b = row // M
        offset = b.to(tl.int64) * view.stride_b + (row - b * M).to(tl.int64) * view.stride_m
    return offset


@triton.jit
def row_tile(view, row, valid, M):
    """The tile of the rows numbered ``row``."""
    return RowTile(view.data, view.stride_d, row_offset(view=view, row=row, M=M), valid)


@triton.jit
def load_chunk(tile, d, D: tl.constexpr):
    """Columns ``d`` of a tile of rows as they lie in memory, zero outside: ``[BLOCK_ROWS, BLOCK_DIM]``."""
    in_bounds = tile.valid[:, None] & (d < D)[None, :]
    at = tile.data + tile.offset[:, None] + d.to(tl.int64)[None, :] * tile.stride_d
    return tl.load(at, mask=in_bounds, other=0.0)


@triton.jit
def load_codes(codebook, code, valid, d, D: tl.constexpr):
    """The columns ``d`` of one code a row in float32, zero outside: ``[BLOCK_ROWS, BLOCK_DIM]``."""
    in_bounds = valid[:, None] & (d < D)[None, :]
    return tl.load(codebook + code[:, None] * D + d[None, :], mask=in_bounds, other=0.0).to(tl.float32)


@triton.jit
def store_chunk(tile, d, values, D: tl.constexpr):
    """Store the columns ``d`` of a tile of rows in the dtype of the data."""
    in_bounds = tile.valid[:, None] & (d < D)[None, :]
    at = tile.data + tile.offset[:, None] + d.to(tl.int64)[None, :] * tile.stride_d
    tl.store(at, values.to(tile.data.dtype.element_ty), mask=in_bounds)


@triton.jit
def row_is_finite(tile, D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Whether a row holds neither NaN nor infinity: ``[BLOCK_ROWS]``, true of rows that do not count."""
    nonfinite = tl.zeros((BLOCK_ROWS,), tl.int32)
    for start in tl.static_range(0, D, BLOCK_DIM):
        v = load_chunk(tile=tile, d=start + tl.arange(0, BLOCK_DIM), D=D).to(tl.float32)
        nonfinite = tl.maximum(nonfinite, tl.max(tl.where(tl.abs(v) <= FLOAT32_MAX, 0, 1), 1))
    return nonfinite == 0


@triton.jit
def fill(target, size, value, BLOCK: tl.constexpr):
    """Fill integer memory, the programs sharing it."""
    per_program = tl.cdiv(size, tl.num_programs(0))
    for start in range(0, per_program, BLOCK):
        i = start + tl.arange(0, BLOCK)
        at = tl.program_id(0).to(tl.int64) * per_program + i
        values = tl.full((BLOCK,), value, target.dtype.element_ty)
        tl.store(target + at, values, mask=(i < per_program) & (at < size))


@triton.jit
def exponent_of(v):
    """floor(log2 v) of positive normal float32 numbers; -127 for zero and denormals."""
    return (v.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def power_of_two(e):
    """2^e as float32 for -126 <= e <= 127."""
    return ((e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def smallest_two(low_a, high_a, low_b, high_b):
    """Combine function on (smallest, second smallest)."""
    return tl.minimum(low_a, low_b), tl.minimum(tl.maximum(low_a, low_b), tl.minimum(high_a, high_b))


@triton.jit
def two_smallest(even, odd, INTERPRETED: tl.constexpr):
    """(smallest, second smallest) over axis 1 of two tensors together, numbers that all differ.

    Three minima or maxima for each pair of numbers. The interpreter calls a combine function once for
    each element, which is too slow for tests; it takes the same numbers by whole-tensor operations.
    """
    low = tl.minimum(even, odd)
    high = tl.maximum(even, odd)
    if INTERPRETED:
        smallest = tl.min(low, 1)
        rest = tl.where(low == smallest[:, None], high, low)
        return smallest, tl.min(rest, 1)
    return tl.reduce((low, high), 1, smallest_two)


@triton.jit
def nearest_of_lanes(value, index, second_best):
    """Reduce (value, index, second smallest) over axis 1; the lower index of equal values."""
    smallest = tl.min(value, 1)
    winner = tl.min(tl.where(value == smallest[:, None], index, 2147483647), 1)
    others = tl.where((value == smallest[:, None]) & (index == winner[:, None]), second_best, value)
    return smallest, winner, tl.min(others, 1)


@triton.jit
def nearest_and_second(value_a, index_a, second_a, value_b, index_b, second_b):
    """Merge (value, index, second smallest) of two sets of codes, the lower index of equal values."""
    take_b = (value_b < value_a) | ((value_b == value_a) & (index_b < index_a))
    low, second = smallest_two(value_a, second_a, value_b, second_b)
    return low, tl.where(take_b, index_b, index_a), second


@triton.jit
def nearest_of_exact(value, rest, index):
    """Reduce exact scores value + rest (float64 pairs) and their index over axis 1."""
    smallest = tl.min(value, 1)
    tied = value == smallest[:, None]
    smallest_rest = tl.min(tl.where(tied, rest, float("inf")), 1)
    tied = tied & (rest == smallest_rest[:, None])
    return smallest, smallest_rest, tl.min(tl.where(tied, index, 2147483647), 1)


@triton.jit
def nearest_exact(value_a, rest_a, index_a, value_b, rest_b, index_b):
    """The smaller of two exact scores; the first, whose index is lower, of equal ones."""
    take_b = (value_b < value_a) | ((value_b == value_a) & (rest_b < rest_a))
    return (
        tl.where(take_b, value_b, value_a),
        tl.where(take_b, rest_b, rest_a),
        tl.where(take_b, index_b, index_a),
    )


@triton.jit
def accumulate(high, low, term):
    """Knuth's TwoSum: high + term = sum + error exactly. Compile with fusion of multiply and add off."""
    total = high + term
    b = total - high
    return total, low + ((high - (total - b)) + (term - b))


def streaming_tile(dim: int) -> tuple[int, int]:
    """(BLOCK_DIM, BLOCK_ROWS) of the kernels that stream over rows: about 2048 elements a program."""
    chunk = min(next_power_of_2(dim), 128)
    return chunk, max(16, min(128, 2048 // chunk))
