"""``nearest_code``: prepare the codebook, search, and resolve what is open; two or three launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .plan import Bound, Config, Plan, make_bound, make_config, make_plan, padded_depth
from .prepare import Prepared, prepare
from .rescore import CANDIDATES, TILE, resolve
from .search import Partial, search_kernel

# Counters that the search leaves on the device: open rows, then the range of x (statistics.py).
COUNTERS = 4

# Tile of codes of the second pass, for 16 rows.
RESOLVE_CODES = 32

# Elements from which on an offset into the prepared codebook needs 64 bits.
WIDE_CODEBOOK = 2**31


class SearchResult(NamedTuple):
    """What the kernels after the search need; scratch of O(N + K D)."""

    plan: Plan
    config: Config
    bound: Bound
    codes: Prepared
    partial: Partial
    counters: Tensor  # int64
    splits: int

    def resolve_arguments(self) -> dict[str, Any]:
        """Arguments of ``rescore.resolve`` by name, but for x, the codebook, the mask and the rows."""
        return {
            "codes": self.codes,
            "partial": self.partial,
            "padded_k": self.codes.high.shape[0],
            "PADDED_D": self.codes.high.shape[1],
            "plan": self.plan,
            "config": self.config._replace(rows=TILE.value, codes=RESOLVE_CODES),
            "bound": self.bound,
            "SPLITS": self.splits,
            "INTERPRETED": common.interpreted(),
        }


def count_splits(rows: int, padded_k: int, config: Config, device: torch.device) -> int:
    """Programs that share the codes, so that few rows still fill the GPU; at least two tiles each.

    A power of two, up to what fills the GPU twice: the kernels are compiled for each number of programs.
    """
    tiles = -(-rows // config.rows)
    wanted = max(1, 2 * common.multiprocessors(device) // tiles)
    return max(1, min(1 << (wanted.bit_length() - 1), padded_k // (2 * config.codes), 64))


def search(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    metric: str,
    precision: str,
    *,
    indices: Tensor | None = None,
    counters: Tensor | None = None,
    counts: Tensor | None = None,
    codebook_copy: Tensor | None = None,
    measure_range: bool = False,
    bound_scale: float = 1.0,
) -> SearchResult:
    """First pass. Indices go to ``indices`` (int64 ``[B, M]``) where given and the codes are not divided.

    ``counters`` and ``counts`` (int64) are zeroed before the search; the first begins with its own counters.
    ``codebook_copy`` receives a copy of the codebook.
    ``bound_scale`` is for the tests that show that the bound is needed.
    """
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    device = x.device
    plan = make_plan(x.dtype, codebook.dtype, metric, precision)
    config = make_config(common.architecture(device), plan, D)
    bound = make_bound(plan, config, D, bound_scale)
    if counters is None:
        counters = torch.empty(COUNTERS, dtype=torch.int64, device=device)
    codes = prepare(
        codebook,
        padded_depth(config, D),
        plan,
        counters=counters,
        counts=counters if counts is None else counts,
        codebook_copy=codebook_copy,
    )
    padded_k = codes.high.shape[0]
    splits = count_splits(N, padded_k, config, device)
    divided, listed = splits > 1, plan.exact and splits == 1

    def empty(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    if divided or indices is None:
        indices = empty(splits * N, torch.int32)
    partial = Partial(
        indices,
        value=empty(splits * N if divided else 0, torch.float32),
        second_best=empty(splits * N if divided and plan.exact else 0, torch.float32),
        row_bound=empty(N if divided or plan.exact else 0, torch.float32),
        ambiguous=empty(N if listed else 0, torch.int32),
        threshold=empty(N if listed else 0, torch.float32),
    )
    programs = codes.extremes.shape[0]
    tiles_per_split = -(-padded_k // (config.codes * splits))
    options: dict[str, Any] = {"maxnreg": config.registers} if config.registers else {}
    search_kernel[(-(-N // config.rows), splits)](
        common.make_view(x),
        mask,
        codes,
        partial,
        counters,
        N,
        M,
        K,
        padded_k,
        programs,
        tiles_per_split * config.codes,
        -(config.codes // 4),
        D=D,
        PADDED_D=codes.high.shape[1],
        plan=plan,
        config=config,
        bound=bound,
        DIVIDED=divided,
        MEASURE_RANGE=measure_range,
        INTERPRETED=common.interpreted(),
        PADDED_PROGRAMS=triton.next_power_of_2(programs),
        WIDE=codes.high.numel() >= WIDE_CODEBOOK,
        num_warps=config.warps,
        num_stages=config.stages,
        enable_fp_fusion=False,
        **options,
    )
    return SearchResult(plan, config, bound, codes, partial, counters, splits)


@triton.jit
def resolve_kernel(
    x, codebook, codes, partial, candidates, counters, indices, N, M, K, padded_k,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    count = tl.load(counters).to(tl.int32)
    if SPLITS > 1:
        count = count * 0 + N
    for start in range(pid * TILE, count, tl.num_programs(0) * TILE):
        row, row_in_range, index = resolve(
            x=x, mask=None, codebook=codebook, codes=codes, partial=partial,
            candidates=candidates + pid * TILE * CANDIDATES, count=count, start=start,
            N=N, M=M, K=K, padded_k=padded_k, D=D, PADDED_D=PADDED_D, plan=plan, config=config, bound=bound,
            SPLITS=SPLITS, INTERPRETED=INTERPRETED,
        )  # fmt: skip
        tl.store(indices + row, index, mask=row_in_range)


def resolve_programs(rows: int, device: torch.device) -> int:
    """Programs of the second pass: four on each multiprocessor, no more than there can be tiles."""
    return max(1, min(4 * common.multiprocessors(device), -(-rows // TILE.value)))


def candidate_scratch(programs: int, device: torch.device) -> Tensor:
    """Room for the candidates of every program's rows."""
    return torch.empty(programs * TILE.value * CANDIDATES.value, dtype=torch.int32, device=device)


def nearest_code(
    x: Tensor, codebook: Tensor, metric: str, precision: str, *, bound_scale: float = 1.0
) -> Tensor:
    """``base.Backend.nearest_code``; ``bound_scale`` is for the tests that show that the bound is needed."""
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    indices = torch.empty((B, M), dtype=torch.int64, device=x.device)
    if N == 0 or K == 0:
        return indices.fill_(0)
    result = search(x, codebook, None, metric, precision, indices=indices, bound_scale=bound_scale)
    if result.splits > 1 or result.plan.exact:
        programs = resolve_programs(N, x.device)
        resolve_kernel[(programs,)](
            x=common.make_view(x),
            codebook=codebook,
            candidates=candidate_scratch(programs, x.device),
            counters=result.counters,
            indices=indices,
            N=N,
            M=M,
            K=K,
            D=D,
            num_warps=4,
            enable_fp_fusion=False,
            **result.resolve_arguments(),
        )
    return indices
