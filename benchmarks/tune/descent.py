"""Coordinate descent over the tile sizes of the Triton search, every candidate checked before it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

import vq_kernels
from vq_kernels.backends.triton import certificate, common, nearest
from vq_kernels.backends.triton.plan import Config
from vq_kernels.backends.triton.tuned import TABLE

from ..agreement import Disagreement, check_against_float64, check_indices
from ..compare import PRECISION_UNITS
from ..gpu.kernels import without_hopper
from ..measure import Budget, Deadline, Timer, measure_pairs
from ..work import Case, make_inputs
from .source import ANY, served, stored

DIMS = (32, 64, 128, 256, 512)  # measured for all D up to there, the last for all above the one before
MARGIN = 0.02  # a change is kept that makes a search faster by more


class Pair(NamedTuple):
    """Dtypes and precision of a search."""

    x: torch.dtype
    codebook: torch.dtype
    precision: str


_F32, _BF16 = torch.float32, torch.bfloat16
# By number of products: every search that the tiles serve. Exact searches of float32 rows take one product
# over all rows and the others over what that leaves open (plan.first_pass), so they stand in several.
PAIRS = {
    1: (
        Pair(_F32, _F32, "exact"),
        Pair(_BF16, _BF16, "exact"),
        Pair(_F32, _F32, "fast"),
        Pair(_BF16, _BF16, "fast"),
    ),
    2: (Pair(_BF16, _F32, "high"), Pair(_BF16, _F32, "exact")),
    3: (Pair(_F32, _F32, "high"), Pair(_F32, _F32, "exact")),
}


class Entry(NamedTuple):
    """An entry of the table: number of products, and the D that stands for its bucket."""

    products: int
    dim: int

    def __str__(self) -> str:
        return f"{self.products}x{self.dim}"

    @property
    def largest(self) -> int:
        """The largest D of the bucket."""
        return ANY if self.dim == DIMS[-1] else self.dim


ENTRIES = tuple(Entry(products, dim) for products in PAIRS for dim in DIMS)


def legal_values(name: str, entry: Entry) -> tuple[Any, ...]:
    """What a field of Config may be, ascending. No tile may hold all of the last bucket's D.

    Codes are padded to a multiple of 128, columns lie in lanes of 8, and a depth is a block of Triton's.
    """
    last = entry.largest == ANY
    return {
        "codes": (16, 32, 64, 128),
        "depth": tuple(d for d in (16, 32, 64, 128) if d < entry.dim) + (() if last else (0,)),
        "rows": (16, 32, 64, 128, 256),
        "warps": (1, 2, 4, 8, 16),
        "stages": (1, 2, 3, 4, 5),
        "registers": (64, 80, 96, 112, 128, 168, None),
        "resident": (False,) if last else (False, True),
    }[name]


def neighbours(config: Config, entry: Entry) -> Iterator[Config]:
    """Configurations that differ in one field, by one step of its legal values, most telling field first."""
    for name in ("codes", "depth", "rows", "warps", "stages", "registers", "resident"):
        values = legal_values(name, entry)
        at = values.index(getattr(config, name))
        for step in (at + 1, at - 1):
            if 0 <= step < len(values):
                candidate = config._replace(**{name: values[step]})
                if 32 * candidate.warps * (candidate.registers or 0) <= 65536:
                    yield candidate


@contextmanager
def in_table(architecture: int, products: int, config: Config) -> Iterator[None]:
    """The stored table with this configuration for every D; as it was afterwards."""
    before = dict(TABLE)
    rules = TABLE[served(architecture, TABLE)]
    TABLE[architecture] = {**rules, products: [(ANY, config.stored())]}
    try:
        yield
    finally:
        TABLE.clear()
        TABLE.update(before)


@dataclass(frozen=True)
class Search:
    """The library's own search, x ``[N, D]`` and codebook ``[K, D]`` -> ``[N]``, with a configuration.

    Its passes are Triton's: on compute capability 9.0 the kernel in CUDA C++ has tiles of its own.
    """

    x: Tensor
    codebook: Tensor
    precision: str
    products: int
    config: Config

    def __call__(self) -> Tensor:
        with without_hopper(), in_table(common.architecture(self.x.device), self.products, self.config):
            return nearest.nearest_code(self.x[None], self.codebook, "l2", self.precision)[0]


def check(search: Search, expected: Tensor) -> Tensor:
    """The indices of a search, after comparing them with those expected.

    Raises:
        Disagreement: an exact search differs at all, another by more than the rounding of its arithmetic.
    """
    x, codebook, indices = search.x, search.codebook, search()
    if search.precision == "exact":
        if not torch.equal(indices, expected):
            raise Disagreement(f"{search.config} differs in {int((indices != expected).sum())} rows")
        return indices
    exact_factors = x.dtype == codebook.dtype != torch.float32
    check_indices(
        *(x, codebook, indices, expected),
        input_unit=0.0 if exact_factors else PRECISION_UNITS[search.precision],
        output_unit=certificate.packing(5),
        ours_is_exact=False,
    )
    return indices


@dataclass
class Trial:
    """A configuration tried, against the best before it."""

    config: Config
    seconds: float | None = None  # of a call of each pair, together
    ratio: float | None = None  # times of the best before over this one's: above 1, this one is faster
    reason: str | None = None  # why it was not measured or not kept


@dataclass
class Outcome:
    """The best configuration of an entry.

    Seconds of one call of each pair, together; ``ratio`` is the geometric mean of the stored one's times
    over the best's.
    """

    entry: Entry
    stored: Config
    best: Config
    stored_s: float = 0.0
    best_s: float = 0.0
    ratio: float = 1.0
    trials: list[Trial] = field(default_factory=list)
    finished: bool = False  # no neighbour is better; else time ran out


# What Triton raises as a plain RuntimeError: its compiler's passes, and a launch of too many registers.
_REFUSED = ("PassManager::run failed", "too many resources requested")


@contextmanager
def recorded(trial: Trial) -> Iterator[None]:
    """A configuration that does not compile or fit is recorded with the reason; other errors pass."""
    try:
        yield
    except (triton.TritonError, RuntimeError) as error:
        if not isinstance(error, triton.TritonError) and not any(words in str(error) for words in _REFUSED):
            raise
        trial.reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]


class Descent:
    """Descent for one entry: of all changes of one field, the best is kept, until none is better.

    ``compile_ahead`` is given the candidates that come next; it may fill Triton's cache.
    """

    def __init__(
        self,
        entry: Entry,
        case: Case,
        device: str,
        timer: Timer,
        budget: Budget,
        compile_ahead: Callable[[Entry, Sequence[Config]], None] = lambda entry, configs: None,
    ) -> None:
        self.entry, self.timer, self.budget, self.compile_ahead = entry, timer, budget, compile_ahead
        self.pairs = PAIRS[entry.products]
        x, codebook = make_inputs(case, device)
        self.inputs = {pair: (x.to(pair.x), codebook.to(pair.codebook)) for pair in self.pairs}
        start = stored(common.architecture(x.device), entry.products, entry.dim)
        if start.depth >= entry.dim and entry.largest != ANY:
            start = start._replace(depth=0)  # the same
        self.outcome = Outcome(entry, start, start)
        self.expected = [self._first(pair) for pair in self.pairs]

    def _first(self, pair: Pair) -> Tensor:
        """Indices of the stored configuration, after comparing them with float64."""
        search = self.search(self.outcome.stored, pair)
        # By the library's own choice: an exact search may take more products than this one.
        exact = vq_kernels.nearest_code(search.x, search.codebook, backend="triton")
        check_against_float64(search.x, search.codebook, exact)
        return check(search, exact)

    def search(self, config: Config, pair: Pair) -> Search:
        return Search(*self.inputs[pair], pair.precision, self.entry.products, config)

    def run(self, deadline: Deadline) -> Outcome:
        """Until no neighbour is better or the time is used up.

        Raises:
            Disagreement: a configuration gives wrong indices.
        """
        outcome, tried = self.outcome, {self.outcome.stored}
        while not outcome.finished and deadline.used < 1.0:
            left = [c for c in neighbours(outcome.best, self.entry) if c not in tried]
            tried.update(left)
            self.compile_ahead(self.entry, left)
            trials = []
            for candidate in left:
                if deadline.used >= 1.0:
                    break
                trials.append(self.measure(candidate))
            outcome.trials += trials
            outcome.finished = not self.keep_best(trials) and len(trials) == len(left)
        self._compare_with_stored()
        return outcome

    def measure(self, candidate: Config) -> Trial:
        """Check a candidate, in every pair that it serves, and time it in turn with the best so far."""
        trial = Trial(candidate)
        with recorded(trial):
            for pair, expected in zip(self.pairs, self.expected, strict=True):
                check(self.search(candidate, pair), expected)
            trial.seconds, _, trial.ratio = self._compare(candidate, self.outcome.best)
        return trial

    def keep_best(self, trials: list[Trial]) -> bool:
        """Whether one is faster than the best so far."""
        faster = [trial for trial in trials if trial.ratio and trial.ratio > 1 + MARGIN]
        if faster:
            self.outcome.best = max(faster, key=lambda trial: trial.ratio or 0.0).config
        return bool(faster)

    def _compare(self, config: Config, other: Config) -> tuple[float, float, float]:
        """Seconds of a call of each pair together, of a configuration and of another; the speed-up."""
        ours = theirs = logarithms = 0.0
        for pair in self.pairs:
            calls = self.search(config, pair), self.search(other, pair)
            times = measure_pairs(*calls, timer=self.timer, budget=self.budget)
            ours, theirs = ours + times.ours_s.median, theirs + times.peer_s.median
            logarithms += math.log(times.ratio.median)
        return ours, theirs, math.exp(logarithms / len(self.pairs))

    def _compare_with_stored(self) -> None:
        """Both once more in turn: what the descent gained must not be noise added up."""
        outcome = self.outcome
        outcome.best_s, outcome.stored_s, outcome.ratio = self._compare(outcome.best, outcome.stored)
        if outcome.best == outcome.stored or outcome.ratio <= 1.0:
            outcome.best, outcome.best_s, outcome.ratio = outcome.stored, outcome.stored_s, 1.0
