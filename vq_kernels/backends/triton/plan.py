"""What a search does, from dtypes, metric and precision; and its tile sizes, from the stored table."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from . import certificate
from .tuned import TABLE


class Plan(NamedTuple):
    """What the kernels compute; one ``tl.constexpr`` of theirs, so plain fields only."""

    split: bool  # float16 parts of scaled numbers; else the operands' own 16-bit dtype
    parts: int  # of x
    code_parts: int  # of the codebook
    centered_rows: bool
    l2: bool  # else cosine
    exact: bool
    pack: bool  # column in the low bits of the score

    @property
    def products(self) -> int:
        return self.parts + self.code_parts - 1


class Config(NamedTuple):
    """Tile of rows by codes by depth, warps, pipeline stages and register limit of a program."""

    rows: int
    codes: int
    depth: int
    warps: int
    stages: int
    registers: int | None
    resident: bool  # rows are read once and stay, else once for every tile of codes


def make_plan(x_dtype: torch.dtype, codebook_dtype: torch.dtype, metric: str, precision: str) -> Plan:
    """Products of a score: x's 16-bit values are exact in one float16 part, float32 values need two.

    ==========  ========  ======  ============
    x           codebook  fast    high, exact
    ==========  ========  ======  ============
    float32     float32   1       3
    16 bit      float32   1       2
    16 bit      the same  1       1
    ==========  ========  ======  ============
    """
    exact = precision == "exact"
    pack = precision != "high"
    if x_dtype != torch.float32 and codebook_dtype == x_dtype:
        return Plan(False, 1, 1, False, metric == "l2", exact, pack)
    parts = 2 if x_dtype == torch.float32 and precision != "fast" else 1
    code_parts = 1 if precision == "fast" else 2
    # 16-bit rows stay as they are: a centred one would need a second part.
    centered = x_dtype == torch.float32 and metric == "l2"
    return Plan(True, parts, code_parts, centered, metric == "l2", exact, pack)


def make_config(architecture: int, plan: Plan, dim: int) -> Config:
    """The stored configuration of the newest architecture not above this one and the first fitting depth.

    ``tuned.TABLE`` maps architecture -> products -> list of (largest D, configuration).
    A depth of 0 means all of D at once.
    """
    known = max((a for a in TABLE if a <= architecture), default=min(TABLE))
    values = next(values for largest, values in TABLE[known][plan.products] if dim <= largest)
    config = Config(*values)
    whole = max(16, triton.next_power_of_2(dim))
    return config._replace(depth=whole if config.depth == 0 else min(config.depth, whole))


def padded_depth(config: Config, dim: int) -> int:
    return -(-dim // config.depth) * config.depth


class Bound(NamedTuple):
    """Coefficients of the error bound, see ``certificate.py``."""

    main: float
    minor: float
    contract: float
    delta: float
    slack: float
    scale: float  # 1, or less in the tests that show that the bound is needed


def make_bound(plan: Plan, config: Config, dim: int, scale: float = 1.0) -> Bound:
    if config.resident:
        # Products with second parts are accumulated first, before the others make the sum large.
        main, minor = certificate.accumulation(dim), certificate.accumulation((plan.products - 1) * dim)
    else:
        main = minor = certificate.accumulation(plan.products * dim)
    bits = (config.codes // 4 - 1).bit_length() if plan.pack else 0
    return Bound(main, minor, certificate.contract(dim), certificate.packing(bits), certificate.SLACK, scale)
