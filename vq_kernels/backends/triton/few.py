"""Few rows: the exact scores of whole rows with all codes, in one launch and without preparation.

Of few rows a search waits for memory and for launches, not for arithmetic: what makes it fast for many (a
codebook in 16-bit parts, a bound for every row, a list of candidates) is a chain of kernels that each begin
with a wait. Here a thread scores one code with two rows in float64, without error and in the order of
``base.py``, and nothing else is needed. The kernel is the whole search of a few pairs, and the last pass, in
place of ``resolve.py``, of some more rows, whose first pass has left a few open.

A unit of work is two rows with 128 codes. Each unit leaves its best exact scores; the last program to arrive
at two rows merges them. Memory traffic: the codes once for every two rows, from the L2 cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .codes import Prepared
from .common import HEADER, MASKED, OPEN_SLOT
from .exact import UNROLLED, as_pair, half_squares, subtract_products
from .launch import Kernel
from .search import OpenRows, load_shared

CODES = 128  # of a unit: one a thread
PROGRAMS = 8  # for each multiprocessor, of units that wait for memory most of the time

# Most products of numbers (N K D) of a whole search, and of one whose first pass leaves a few rows in a
# hundred open; where float64 arithmetic has a half or a 64th of float32's rate. Derived, not measured: 2^24
# products are 0.2e9 operations, 15 us of the 14e12 operations a second that an H100 adds in float64.
_FULL_RATE = (80, 90, 100)
_LIMITS = {True: (1 << 24, 1 << 30), False: (1 << 19, 1 << 25)}
MOST_ROWS = 4096  # two of them have a ticket
MOST_CODES = 1 << 17  # the merge holds a number for every 128 codes


class Best(NamedTuple):
    """Scratch: the best exact score of every row in every 128 codes, and the units that have arrived."""

    value: Any  # [N, blocks] float64
    rest: Any  # [N, blocks] float64
    index: Any  # [N, blocks] int32
    tickets: Any  # [ceil(N / 2)] int64, zero before


def limits(architecture: int) -> tuple[int, int]:
    """Most N K D of a whole search and of one with a first pass; none in the interpreter, for the tests."""
    return _LIMITS[architecture in _FULL_RATE] if architecture else (0, 0)


def takes_search(rows: int, codebook: Tensor) -> bool:
    """Whether the kernel is the fastest search of so many rows."""
    return _takes(0, rows, codebook)


def takes_open_rows(rows: int, codebook: Tensor) -> bool:
    """Whether the kernel is the fastest last pass of a search of so many rows."""
    return _takes(1, rows, codebook)


def _takes(use: int, rows: int, codebook: Tensor) -> bool:
    most = limits(common.architecture(codebook.device))[use]
    return rows <= MOST_ROWS and codebook.shape[0] <= MOST_CODES and rows * codebook.numel() <= most


@triton.jit
def store_best(
    high, low, excluded, code, best, at, indices, row, mask, WHOLE: tl.constexpr
):  # fmt: skip
    """Store the nearest of these codes: as the row's index if they are all codes, else for the merge."""
    value, rest = as_pair(high=high, low=low)
    value = tl.where(excluded, float("inf"), value)
    rest = tl.where(excluded, float("inf"), rest)
    value, rest, index = common.nearest_of_exact(
        value=value[None, :], rest=rest[None, :], index=code[None, :]
    )  # fmt: skip
    if WHOLE:
        store_index(value=value, index=index, indices=indices, row=row, mask=mask)
    else:
        first = tl.arange(0, 1)
        tl.store(best.value + at + first, value)
        tl.store(best.rest + at + first, rest)
        tl.store(best.index + at + first, index)


@triton.jit
def store_index(value, index, indices, row, mask):
    """The index of one row, ``[1]``: 0 where no code has a score, as of a row that is not finite."""
    index = tl.where(value < float("inf"), index, 0)
    if mask is not None:
        index = tl.where(tl.load(mask + row + tl.arange(0, 1)) != 0, index, MASKED)
    tl.store(indices + row + tl.arange(0, 1), index)


@triton.jit
def merge_best(best, entry, blocks, indices, row, mask, PADDED_BLOCKS: tl.constexpr):
    """Store the index of a row from the best of all its blocks."""
    block = tl.arange(0, PADDED_BLOCKS)
    at = entry.to(tl.int64) * blocks + block
    there = block < blocks
    value = tl.where(there, load_shared(best.value + at, there), float("inf"))
    rest = tl.where(there, load_shared(best.rest + at, there), float("inf"))
    value, rest, index = common.nearest_of_exact(
        value=value[None, :], rest=rest[None, :], index=load_shared(best.index + at, there)[None, :]
    )
    store_index(value=value, index=index, indices=indices, row=row, mask=mask)


@Kernel
@triton.jit
def few_kernel(
    x, mask, codebook, squares, listed, counters, best, indices, N, M, K, blocks,
    D: tl.constexpr, L2: tl.constexpr, CODES: tl.constexpr, WHOLE: tl.constexpr, VECTOR: tl.constexpr,
    UNROLLED: tl.constexpr, PADDED_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Indices of all rows, or of those in the list ``listed``, whose number is a counter.

    ``squares``: what ``prepare.py`` left of the codes, with half their square norms; or None.
    WHOLE: one block holds all codes.
    """
    count = N
    if listed is not None:
        count = tl.load(counters + OPEN_SLOT).to(tl.int32)
    TAIL: tl.constexpr = D % UNROLLED
    for unit in range(tl.program_id(0), tl.cdiv(count, 2) * blocks, tl.num_programs(0)):
        group = unit // blocks
        block = unit - group * blocks
        code = block * CODES + tl.arange(0, CODES)
        valid = code < K
        e_at = codebook + code.to(tl.int64) * D
        none = tl.zeros((CODES,), tl.int32)
        if squares is not None:
            high = tl.load(squares.square_high + code, mask=valid, other=0.0)
            low = tl.load(squares.square_low + code, mask=valid, other=0.0)
            nonfinite = tl.where(high < float("inf"), 0, 1)
        else:
            high, low, nonfinite = half_squares(
                at=e_at, valid=valid, D=D, CODES=CODES, UNROLLED=UNROLLED, VECTOR=VECTOR
            )
        unusable = (nonfinite > 0) | (valid == 0)
        high = tl.where(unusable, 0.0, high)
        low = tl.where(unusable, 0.0, low)
        if not L2:
            high = high * 0.0
            low = low * 0.0

        # Of an odd number of rows the last one is both. Every thread holds its row's address: a number for
        # all threads would have to be brought into their layout.
        entry_a = group * 2
        entry_b = tl.minimum(entry_a + 1, count - 1)
        row_a = entry_a
        row_b = entry_b
        if listed is not None:
            row_a = tl.load(listed.rows + entry_a)
            row_b = tl.load(listed.rows + entry_b)
        a_at = x.data + common.row_offset(view=x, row=row_a + none, M=M)
        b_at = x.data + common.row_offset(view=x, row=row_b + none, M=M)
        high_a = high
        low_a = low
        high_b = high
        low_b = low
        nonfinite_a = none
        nonfinite_b = none
        for _ in range(0, D - TAIL, UNROLLED):
            high_a, low_a, high_b, low_b, nonfinite_a, nonfinite_b = subtract_products(
                high_a=high_a, low_a=low_a, high_b=high_b, low_b=low_b, nonfinite_a=nonfinite_a,
                nonfinite_b=nonfinite_b, at=e_at, a_at=a_at, b_at=b_at, stride_d=x.stride_d, valid=valid,
                unusable=unusable, COUNT=UNROLLED, VECTOR=VECTOR,
            )  # fmt: skip
            e_at += UNROLLED
            a_at += UNROLLED * x.stride_d
            b_at += UNROLLED * x.stride_d
        high_a, low_a, high_b, low_b, nonfinite_a, nonfinite_b = subtract_products(
            high_a=high_a, low_a=low_a, high_b=high_b, low_b=low_b, nonfinite_a=nonfinite_a,
            nonfinite_b=nonfinite_b, at=e_at, a_at=a_at, b_at=b_at, stride_d=x.stride_d, valid=valid,
            unusable=unusable, COUNT=TAIL, VECTOR=VECTOR,
        )  # fmt: skip
        at_a = entry_a.to(tl.int64) * blocks + block
        at_b = entry_b.to(tl.int64) * blocks + block
        store_best(
            high=high_a, low=low_a, excluded=unusable | (nonfinite_a > 0), code=code, best=best, at=at_a,
            indices=indices, row=row_a, mask=mask, WHOLE=WHOLE,
        )  # fmt: skip
        store_best(
            high=high_b, low=low_b, excluded=unusable | (nonfinite_b > 0), code=code, best=best, at=at_b,
            indices=indices, row=row_b, mask=mask, WHOLE=WHOLE,
        )  # fmt: skip
        if not WHOLE:
            tl.debug_barrier()
            arrived = tl.atomic_add(best.tickets + group, 1, sem="acq_rel")
            if arrived == blocks - 1:
                merge_best(
                    best=best, entry=entry_a, blocks=blocks, indices=indices, row=row_a, mask=mask,
                    PADDED_BLOCKS=PADDED_BLOCKS,
                )  # fmt: skip
                merge_best(
                    best=best, entry=entry_b, blocks=blocks, indices=indices, row=row_b, mask=mask,
                    PADDED_BLOCKS=PADDED_BLOCKS,
                )  # fmt: skip


def tickets(rows: int) -> int:
    """Tickets of so many rows, zero before a launch."""
    return -(-rows // 2)


def launch(
    x: Tensor,
    mask: Tensor | None,
    codebook: Tensor,
    squares: Prepared | None,
    listed: OpenRows | None,
    counters: Tensor,
    arrived: Tensor,
    indices: Tensor,
    *,
    l2: bool,
) -> None:
    """Launch on the current stream; ``arrived`` are :func:`tickets`, ``counters`` those of the first pass."""
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    blocks = -(-K // CODES)
    scratch = N * blocks if blocks > 1 else 0
    programs = min(tickets(N) * blocks, PROGRAMS * common.multiprocessors(x.device))
    few_kernel[(programs,)](
        common.make_view(x),
        mask,
        codebook,
        squares,
        listed,
        counters,
        Best(
            value=torch.empty(scratch, dtype=torch.float64, device=x.device),
            rest=torch.empty(scratch, dtype=torch.float64, device=x.device),
            index=torch.empty(scratch, dtype=torch.int32, device=x.device),
            tickets=arrived,
        ),
        indices,
        N,
        M,
        K,
        blocks,
        D=D,
        L2=l2,
        CODES=CODES,
        WHOLE=blocks == 1,
        VECTOR=D % 4 == 0,
        UNROLLED=UNROLLED,
        PADDED_BLOCKS=common.next_power_of_2(blocks),
        num_warps=4,
        enable_fp_fusion=False,
    )


def search_few(x: Tensor, mask: Tensor | None, codebook: Tensor, metric: str, indices: Tensor) -> Tensor:
    """The whole search: exact indices (int64) of all rows, -1 where masked. Returns counters, all zero."""
    rows = x.shape[0] * x.shape[1]
    counters = torch.zeros(int(HEADER.value) + tickets(rows), dtype=torch.int64, device=x.device)
    arrived = counters[int(HEADER.value) :]
    launch(x, mask, codebook, None, None, counters, arrived, indices, l2=metric == "l2")
    return counters
