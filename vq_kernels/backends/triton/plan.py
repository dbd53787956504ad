"""What a search does, from dtypes, metric and precision; and its tile sizes, from the stored table."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from . import certificate, common
from .common import next_power_of_2
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
    reading: int = 0  # numbers of a row at a time where it is only looked at; 0: as many as in a product

    def stored(self) -> tuple[Any, ...]:
        """What the table holds: all but ``reading``, which follows from how rows are loaded."""
        return tuple(self)[:-1]


@functools.lru_cache(1024)
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


# The least depth of a matrix product.
SHORTEST = 16

# Numbers of a row that are looked at together where threads load several at once: each chunk waits for
# memory, which is most of the time of a search of few rows.
READING = 64

# From this D on float32 and mixed searches take one product over all rows and the others over the rows
# that it leaves open; below, codes lie so densely that one product leaves too many.
CASCADE_FROM = 32


@functools.lru_cache(1024)
def first_pass(plan: Plan, dim: int) -> Plan:
    """The plan of the search itself; ``plan`` is then that of the rows which the search leaves open."""
    if plan.exact and plan.products > 1 and dim >= CASCADE_FROM:
        return plan._replace(parts=1, code_parts=1)
    return plan


def make_config(architecture: int, plan: Plan, dim: int, vectors: bool = True) -> Config:
    """The stored configuration of the newest architecture not above this one and the first fitting depth.

    ``tuned.TABLE`` maps architecture -> products -> list of (largest D, configuration).
    A depth of 0 means all of D at once. Without ``vectors`` (``common.loads_vectors``) a thread holds an
    address for every number that it loads, of which short chunks need fewer.
    """
    # The table is looked at anew every time: the tuner writes into it.
    rules = TABLE[_newest(architecture, tuple(TABLE))][plan.products]
    values = next(values for largest, values in rules if dim <= largest)
    return _fit(values, plan, dim, vectors, has_tensor_memory(architecture))


def has_tensor_memory(architecture: int) -> bool:
    """Whether the matrix unit keeps its sums in tensor memory, 512 columns a multiprocessor (10.x, 11.x).

    Every product of resident parts of rows takes columns of its own there, so that many short chunks
    do not fit: Triton 3.7.1 then compiles a kernel that traps.
    """
    return 100 <= architecture < 120


@functools.lru_cache(1024)
def _newest(architecture: int, known: tuple[int, ...]) -> int:
    return max((a for a in known if a <= architecture), default=min(known))


@functools.lru_cache(1024)
def _fit(values: tuple[Any, ...], plan: Plan, dim: int, vectors: bool, tensor_memory: bool) -> Config:
    config = Config(*values)
    whole = max(16, next_power_of_2(dim))
    config = config._replace(depth=whole if config.depth == 0 else min(config.depth, whole))
    if not vectors:
        resident = config.resident and not tensor_memory
        return config._replace(depth=SHORTEST, registers=None, resident=resident)
    if config.resident:
        config = config._replace(reading=READING)
    if plan.exact and config.registers is not None:
        # The second best scores take registers, which the row's parts must not wait in.
        return config._replace(depth=SHORTEST)
    return config


@functools.lru_cache(1024)
def middle_config(architecture: int, plan: Plan, dim: int, padded_dim: int, vectors: bool = True) -> Config:
    """Tiles of the middle pass: a search with all products, in chunks that the prepared codes have.

    Its rows come from a list, those of channel-first maps with an address for every number: no long chunks.
    """
    config = make_config(architecture, plan, dim, vectors)._replace(reading=0)
    if has_tensor_memory(architecture):
        # Hundreds of spills otherwise.
        return config._replace(depth=SHORTEST, resident=False)
    return config if padded_dim % config.depth == 0 else config._replace(depth=SHORTEST)


@functools.lru_cache(1024)
def resolve_config(architecture: int, config: Config, dim: int, vectors: bool = True) -> Config:
    """Tiles of the second pass, for codes that were padded for the search's configuration.

    64 rows are the least that Hopper's matrix instruction takes; the parts of the codes of two stages fit
    the 99 KiB of shared memory of the smaller GPUs. With tensor memory, resident parts of rows would come
    and go around every product: 468 spills at D = 64 and 7,251 at D = 128 (Triton 3.7.1).
    """
    tensor_memory = has_tensor_memory(architecture)
    return config._replace(
        rows=64,
        codes=64 if dim <= 64 else 32,
        depth=SHORTEST,
        warps=8 if tensor_memory else 4,
        stages=2,
        registers=None,
        resident=not tensor_memory and dim <= (128 if vectors else 64),
        reading=0,
    )


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


@functools.lru_cache(1024)
def make_bound(plan: Plan, config: Config, dim: int, scale: float = 1.0) -> Bound:
    if config.resident:
        # Products with second parts are accumulated first, before the others make the sum large.
        main, minor = certificate.accumulation(dim), certificate.accumulation((plan.products - 1) * dim)
    else:
        main = minor = certificate.accumulation(plan.products * dim)
    bits = (config.codes // 4 - 1).bit_length() if plan.pack else 0
    return Bound(main, minor, certificate.contract(dim), certificate.packing(bits), certificate.SLACK, scale)


# Steps over a tile of codes that what comes before and after them costs a program of the search.
OVERHEAD = 2


def count_splits(rows: int, padded_k: int, config: Config, device: torch.device) -> int:
    """Programs that share the codes of a tile of rows, so that all multiprocessors end at about one time.

    With two programs on each of P multiprocessors, S programs for each of T tiles run in
    ceil(S T / 2 P) waves, each over one S-th of the tiles of codes.
    """
    tiles = -(-rows // config.rows)
    return _splits(tiles, -(-padded_k // config.codes), 2 * common.multiprocessors(device))


@functools.lru_cache(1024)
def _splits(tiles: int, code_tiles: int, places: int) -> int:
    def steps(splits: int) -> int:
        return -(-splits * tiles // places) * (-(-code_tiles // splits) + OVERHEAD)

    most = max(1, min(code_tiles // 2, 64, 4 * places // tiles))
    return min(range(1, most + 1), key=lambda splits: (steps(splits), splits))
