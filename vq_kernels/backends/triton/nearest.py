"""``nearest_code``: prepare the codebook, search, and settle what is open; two or three launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import certificate, common
from .plan import Bound, Config, Plan, make_bound, make_config, make_plan, padded_depth
from .prepare import Prepared, prepare
from .rescore import CANDIDATES, TILE, settle
from .search import search_kernel

# Counters that the search leaves on the device: open rows, then the range of x (statistics.py).
COUNTERS = 4

# Tile of codes of the second pass, for 16 rows.
SETTLE_CODES = 32

# Elements from which on an offset into the prepared codebook needs 64 bits.
WIDE_CODEBOOK = 2**31


class Searched(NamedTuple):
    """What the kernels after the search need; scratch of O(N + K D)."""

    plan: Plan
    config: Config
    bound: Bound
    prepared: Prepared
    splits: int
    first: Tensor  # [N], or [splits, N] int32: index, -1 masked, -2 open
    value: Tensor  # [splits, N] float32
    second: Tensor  # [splits, N] float32
    row_bound: Tensor  # [N] float32
    ambiguous: Tensor  # [N] int32, the open rows in any order
    threshold: Tensor  # [N] float32
    counters: Tensor  # int64

    def settle_arguments(self) -> dict[str, Any]:
        """Arguments of ``rescore.settle`` by name, but for x, the codebook, the mask and the rows."""
        prepared = self.prepared
        return {
            "high": prepared.high,
            "low": prepared.low,
            "bias": prepared.bias,
            "center": prepared.center,
            "extremes": prepared.extremes,
            "square_high": prepared.square_high,
            "square_low": prepared.square_low,
            "value_in": self.value,
            "index_in": self.first,
            "second_in": self.second,
            "bound_in": self.row_bound,
            "ambiguous": self.ambiguous,
            "threshold": self.threshold,
            "padded_k": prepared.high.shape[0],
            "PADDED_D": prepared.high.shape[1],
            "CHUNK": self.config.depth,
            "RESIDENT": self.config.resident,
            "BK": SETTLE_CODES,
            "SPLIT": self.plan.split,
            "PARTS": self.plan.parts,
            "CODE_PARTS": self.plan.code_parts,
            "CENTERED": self.plan.centered_rows,
            "L2": self.plan.metric == "l2",
            "EXACT": self.plan.exact,
            "SPLITS": self.splits,
            "DELTA": self.bound.delta,
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
    scratch: Tensor | None = None,
    counts: Tensor | None = None,
    kept: Tensor | None = None,
    measure_range: bool = False,
    bound_scale: float = 1.0,
) -> Searched:
    """First pass. Indices go to ``indices`` (int64 ``[B, M]``) where given and the codes are not divided.

    ``scratch`` and ``counts`` (int64) are zeroed before the search; the first begins with its counters.
    ``kept`` receives a copy of the codebook.
    ``bound_scale`` is for the tests that show that the bound is needed.
    """
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    device = x.device
    plan = make_plan(x.dtype, codebook.dtype, metric, precision)
    config = make_config(common.architecture(device), plan, D)
    bound = make_bound(plan, config, D)
    counters = torch.empty(COUNTERS, dtype=torch.int64, device=device) if scratch is None else scratch
    prepared = prepare(
        codebook,
        padded_depth(config, D),
        split=plan.split,
        parts=plan.code_parts,
        centered_rows=plan.centered_rows,
        metric=metric,
        squares=plan.exact,
        scratch=counters,
        counts=counters if counts is None else counts,
        kept=kept,
    )
    padded_k = prepared.high.shape[0]
    splits = count_splits(N, padded_k, config, device)
    divided, listed = splits > 1, plan.exact and splits == 1

    def empty(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=device)

    first = indices
    if divided or first is None:
        first = empty(splits * N, torch.int32)
    result = Searched(
        plan,
        config,
        bound,
        prepared,
        splits,
        first,
        empty(splits * N if divided else 0, torch.float32),
        empty(splits * N if divided and plan.exact else 0, torch.float32),
        empty(N if divided or plan.exact else 0, torch.float32),
        empty(N if listed else 0, torch.int32),
        empty(N if listed else 0, torch.float32),
        counters,
    )
    programs = prepared.extremes.shape[0]
    tiles_per_split = -(-padded_k // (config.codes * splits))
    options: dict[str, Any] = {"maxnreg": config.registers} if config.registers else {}
    search_kernel[(-(-N // config.rows), splits)](
        x,
        prepared.high,
        prepared.low,
        prepared.bias,
        prepared.center,
        prepared.extremes,
        mask,
        first,
        result.value,
        result.second,
        result.row_bound,
        result.ambiguous,
        result.threshold,
        counters,
        N,
        M,
        K,
        padded_k,
        *common.strides(x),
        programs,
        tiles_per_split * config.codes,
        -(config.codes // 4),
        D=D,
        PADDED_D=prepared.high.shape[1],
        CHUNK=config.depth,
        RESIDENT=config.resident,
        BN=config.rows,
        BK=config.codes,
        STAGES=config.stages,
        SPLIT=plan.split,
        PARTS=plan.parts,
        CODE_PARTS=plan.code_parts,
        CENTERED=plan.centered_rows,
        L2=metric == "l2",
        EXACT=plan.exact,
        PACK=plan.pack,
        DIVIDED=divided,
        HAS_MASK=mask is not None,
        RANGE=measure_range,
        INTERPRETED=common.interpreted(),
        MAIN=bound.main,
        MINOR=bound.minor,
        CONTRACT=bound.contract,
        DELTA=bound.delta,
        SLACK=certificate.SLACK,
        BOUND_SCALE=bound_scale,
        LINES=triton.next_power_of_2(programs),
        WIDE=prepared.high.numel() >= WIDE_CODEBOOK,
        num_warps=config.warps,
        num_stages=config.stages,
        **options,
    )
    return result


@triton.jit
def settle_kernel(
    x, codebook, high, low, bias, center, extremes, square_high, square_low, candidates,
    value_in, index_in, second_in, bound_in, ambiguous, threshold, counters, index_out,
    N, M, K, padded_k, stride_b, stride_m, stride_d,
    D: tl.constexpr, PADDED_D: tl.constexpr, CHUNK: tl.constexpr, RESIDENT: tl.constexpr, BK: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, CODE_PARTS: tl.constexpr, CENTERED: tl.constexpr,
    L2: tl.constexpr, EXACT: tl.constexpr, SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
    DELTA: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    scratch = candidates + pid * TILE * CANDIDATES
    count = tl.load(counters).to(tl.int32)
    if SPLITS > 1:
        count = count * 0 + N
    for start in range(pid * TILE, count, tl.num_programs(0) * TILE):
        row, there, index = settle(
            x, codebook, high, low, bias, center, extremes, square_high, square_low, scratch, index_out,
            value_in, index_in, second_in, bound_in, ambiguous, threshold, count, start,
            N, M, K, padded_k, stride_b, stride_m, stride_d,
            D, PADDED_D, CHUNK, RESIDENT, BK, SPLIT, PARTS, CODE_PARTS, CENTERED, L2, EXACT, False, SPLITS,
            INTERPRETED, DELTA,
        )  # fmt: skip
        tl.store(index_out + row, index, mask=there)


def settle_programs(rows: int, device: torch.device) -> int:
    """Programs of the second pass: four on each multiprocessor, no more than there can be tiles."""
    return max(1, min(4 * common.multiprocessors(device), -(-rows // TILE.value)))


def nearest_code(
    x: Tensor, codebook: Tensor, metric: str, precision: str, *, bound_scale: float = 1.0
) -> Tensor:
    """``base.Backend.nearest_code``; ``bound_scale`` is for the tests that show that the bound is needed."""
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    indices = torch.empty((B, M), dtype=torch.int64, device=x.device)
    if N == 0 or K == 0:
        return indices.fill_(0)
    found = search(x, codebook, None, metric, precision, indices=indices, bound_scale=bound_scale)
    if found.splits > 1 or found.plan.exact:
        programs = settle_programs(N, x.device)
        stride_b, stride_m, stride_d = common.strides(x)
        settle_kernel[(programs,)](
            x,
            codebook,
            candidates=torch.empty(
                programs * TILE.value * CANDIDATES.value, dtype=torch.int32, device=x.device
            ),
            counters=found.counters,
            index_out=indices,
            N=N,
            M=M,
            K=K,
            stride_b=stride_b,
            stride_m=stride_m,
            stride_d=stride_d,
            D=D,
            INTERPRETED=common.interpreted(),
            num_warps=4,
            enable_fp_fusion=False,
            **found.settle_arguments(),
        )
    return indices
