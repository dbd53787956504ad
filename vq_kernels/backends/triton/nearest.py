"""``nearest_code``: prepare the codebook, search, and resolve what is open; two or three launches.

Of few rows everything is scored exactly at once, or what the search leaves open (``few.py``).

A codebook that was packed (``packed.py``) is not prepared again: one launch less, of a large one two.

A large codebook takes two launches more: one that excludes duplicates (``duplicates.py``), and, for exact
results from more than one product, a middle pass of the search over the rows that its first pass left open.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import common, few, hopper
from .codes import Prepared
from .common import HEADER, OPEN_SLOT
from .duplicates import is_large
from .packed import Packed, packed_codes
from .plan import (
    Bound,
    Config,
    Plan,
    count_splits,
    first_pass,
    make_bound,
    make_config,
    make_plan,
    middle_config,
    padded_depth,
    resolve_config,
)
from .prepare import padded_codes, prepare
from .resolve import CANDIDATES, Pieces, resolve_kernel
from .search import OpenRows, Partial, search_kernel

# Elements from which on an offset into the prepared codebook needs 64 bits.
WIDE_CODEBOOK = 2**31

# Open rows for each program of the last pass from which on a middle pass takes them.
MIDDLE_ROWS = 16


class SearchResult(NamedTuple):
    """What the kernels after the search need; scratch of O(N + K D)."""

    plan: Plan  # of the second pass; the first may take fewer products
    config: Config
    codes: Prepared
    open_rows: OpenRows
    listed_from: int  # open rows from which on a middle pass has left its own list; 0: there was none
    splits: int
    counters: Tensor  # int64, see common.py
    accumulators: Tensor  # int64, zero


def search(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    metric: str,
    precision: str,
    *,
    indices: Tensor,
    counts: Tensor | None = None,
    accumulators: int = 0,
    codebook_copy: Tensor | None = None,
    measure_range: bool = False,
    bound_scale: float = 1.0,
    packed: Packed | None = None,
) -> SearchResult:
    """First pass: ``indices`` (int64, N of them) of all rows, -1 where masked, -2 where open.

    ``counts`` (int64) and that many ``accumulators`` are zeroed before the search.
    ``codebook_copy`` receives a copy of the codebook.
    ``bound_scale`` is for the tests that show that the bound is needed.
    """
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    device = x.device
    plan = make_plan(x.dtype, codebook.dtype, metric, precision)
    first = first_pass(plan, D)
    vectors = common.loads_vectors(x)
    config = make_config(common.architecture(device), first, D, vectors)
    padded_k = padded_codes(K)
    tiled_depth = hopper.depth_for(x, K, first)
    splits = 1 if tiled_depth else count_splits(N, padded_k, config, device)
    divided = splits > 1
    row_tiles = -(-N // config.rows)
    # One memory to zero: header, tickets of the second pass, tickets of the row tiles, accumulators.
    last_tickets = few.tickets(N) if few.takes_open_rows(N, codebook) else resolve_programs(device)
    row_tickets = int(HEADER.value) + last_tickets
    begin = row_tickets + (row_tiles + row_tiles % 2 if divided else 0)
    counters = torch.empty(begin + accumulators, dtype=torch.int64, device=device)
    codes = packed_codes(packed, x.dtype, config, tiled_depth)
    if codes is None:
        codes = prepare(
            codebook,
            tiled_depth or padded_depth(config, D),
            plan,
            counters=counters,
            counts=counters if counts is None else counts,
            codebook_copy=codebook_copy,
            tiled=tiled_depth > 0,
        )
    else:
        counters.zero_()
        if counts is not None:
            counts.zero_()
        if codebook_copy is not None:
            codebook_copy.copy_(codebook)

    def empty(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    partial = None
    if divided:
        partial = Partial(
            indices=empty(splits * N, torch.int32),
            value=empty(splits * N, torch.float32),
            second_best=empty(splits * N, torch.float32),
            tickets=counters[row_tickets:],
        )
    listed = N if plan.exact else 0
    listed_from = middle_from(N, plan, first, codebook)
    if listed_from:
        listed *= 2
    open_rows = OpenRows(empty(listed, torch.int32), empty(listed, torch.float32))
    if tiled_depth:
        bound = make_bound(first, config._replace(resident=True), tiled_depth, bound_scale)
        hopper.search(
            x, mask, codes, K, first, bound, open_rows, counters, indices, measure_range=measure_range
        )
    else:
        tiles_per_split = -(-padded_k // (config.codes * splits))
        launch_search(
            (row_tiles, splits), x, mask, codes, partial, open_rows, counters, indices, K,
            tiles_per_split * config.codes, first, config, make_bound(first, config, D, bound_scale),
            measure_range=measure_range,
        )  # fmt: skip
    if listed_from:
        padded_d = codes.high.shape[1]
        middle = middle_config(common.architecture(device), plan, D, padded_d, vectors)
        launch_search(
            (-(-N // middle.rows), 1), x, None, codes, None, open_rows, counters, indices, K, padded_k,
            plan, middle, make_bound(plan, middle, D, bound_scale), listed_from=listed_from,
        )  # fmt: skip
    return SearchResult(plan, config, codes, open_rows, listed_from, splits, counters, counters[begin:])


def launch_search(
    grid: tuple[int, int],
    x: Tensor,
    mask: Tensor | None,
    codes: Prepared,
    partial: Partial | None,
    open_rows: OpenRows,
    counters: Tensor,
    indices: Tensor,
    codebook_size: int,
    codes_per_split: int,
    plan: Plan,
    config: Config,
    bound: Bound,
    *,
    measure_range: bool = False,
    listed_from: int = 0,
) -> None:
    """One pass: over all rows, or over the open ones where there are at least ``listed_from``."""
    B, M, D = x.shape
    padded_k, padded_d = codes.high.shape
    programs = codes.extremes.shape[0]
    options: dict[str, Any] = {"maxnreg": config.registers} if config.registers else {}
    search_kernel[grid](
        common.make_view(x),
        mask,
        codes,
        partial,
        torch.empty(B * M, dtype=torch.float32, device=x.device),
        open_rows,
        counters,
        indices,
        B * M,
        M,
        codebook_size,
        padded_k,
        programs,
        codes_per_split,
        -(config.codes // 4),
        D=D,
        PADDED_D=padded_d,
        plan=plan,
        config=config,
        bound=bound,
        MEASURE_RANGE=measure_range,
        INTERPRETED=common.interpreted(),
        PADDED_PROGRAMS=common.next_power_of_2(programs),
        WIDE=codes.high.numel() >= WIDE_CODEBOOK,
        LISTED_FROM=listed_from,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=False,
        **options,
    )


def middle_from(rows: int, plan: Plan, first: Plan, codebook: Tensor) -> int:
    """Open rows from which on a middle pass takes them; 0 where there is none.

    The last pass divides the codes of few rows among its programs, and needs no help with them; of a
    small codebook the launch would cost what it saves.
    """
    least = MIDDLE_ROWS * resolve_programs(codebook.device)
    return 0 if first == plan or rows < least or not is_large(codebook) else least


def resolve_programs(device: torch.device) -> int:
    """Programs of the second pass: two on each multiprocessor, for a single row too."""
    return 2 * common.multiprocessors(device)


def resolve(
    x: Tensor, codebook: Tensor, result: SearchResult, indices: Tensor, bound_scale: float = 1.0
) -> None:
    """Second pass: write the indices of the rows that an exact search left open."""
    B, M, D = x.shape
    K = codebook.shape[0]
    device = x.device
    tickets = result.counters[int(HEADER.value) :]
    if few.takes_open_rows(B * M, codebook):
        listed, counters = result.open_rows, result.counters
        few.launch(
            x, None, codebook, result.codes, listed, counters, tickets, indices, l2=result.plan.l2
        )  # fmt: skip
        return
    config = resolve_config(common.architecture(device), result.config, D, common.loads_vectors(x))
    programs = resolve_programs(device)
    rows = programs * config.rows

    def empty(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    lines = result.codes.extremes.shape[0]
    resolve_kernel[(programs,)](
        common.make_view(x),
        codebook,
        result.codes,
        result.open_rows,
        Pieces(
            candidates=empty(rows * int(CANDIDATES.value), torch.int32),
            value=empty(rows, torch.float64),
            rest=empty(rows, torch.float64),
            index=empty(rows, torch.int32),
            tickets=tickets,
        ),
        result.counters,
        indices,
        B * M,
        M,
        K,
        result.codes.high.shape[0],
        lines,
        -(config.codes // 4),
        D=D,
        PADDED_D=result.codes.high.shape[1],
        plan=result.plan,
        config=config,
        bound=make_bound(result.plan, config, D, bound_scale),
        INTERPRETED=common.interpreted(),
        PADDED_PROGRAMS=common.next_power_of_2(lines),
        LISTED_FROM=result.listed_from,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=False,
    )


def nearest_code(
    x: Tensor,
    codebook: Tensor,
    metric: str,
    precision: str,
    packed: Packed | None = None,
    *,
    bound_scale: float = 1.0,
) -> Tensor:
    """``base.Backend.nearest_code``; ``bound_scale`` is for the tests that show that the bound is needed."""
    B, M, _ = x.shape
    N, K = B * M, codebook.shape[0]
    indices = torch.empty(B, M, dtype=torch.int64, device=x.device)
    if N == 0 or K == 0:
        return indices.fill_(0)
    if few.takes_search(N, codebook):
        few.search_few(x, None, codebook, metric, indices)
        return indices
    result = search(
        x, codebook, None, metric, precision, indices=indices, bound_scale=bound_scale, packed=packed
    )
    if result.plan.exact:
        resolve(x, codebook, result, indices, bound_scale)
    return indices


def open_share(x: Tensor, codebook: Tensor, metric: str = "l2") -> float:
    """Share of the rows that the first pass of an exact search leaves to the second; waits for the device."""
    B, M, _ = x.shape
    indices = torch.empty(B, M, dtype=torch.int64, device=x.device)
    result = search(x, codebook, None, metric, "exact", indices=indices)
    return int(result.counters[int(OPEN_SLOT.value)]) / max(1, B * M)
