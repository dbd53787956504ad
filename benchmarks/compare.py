"""Measure one piece of work against every peer: agreement first, then pairs in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from . import layers
from .agreement import BFLOAT16, TF32, Disagreement, check_against_float64, check_indices
from .launches import captured, count_launches
from .measure import (
    DEFAULT_BUDGET,
    Budget,
    Call,
    Shares,
    Timer,
    measure_alone,
    measure_pairs,
    starts_slowly,
    timer_for,
)
from .memory import peak_beyond_outputs
from .peers import Peer, Search, our_search, search_peers
from .report import Row
from .work import Case, make_inputs

LAYER_PEER = "vector-quantize-pytorch"
# How far the indices of our own lower precisions may be from exact, as rounding of the factors.
PRECISION_UNITS = {"exact": 0.0, "high": 2.0**-17, "fast": max(BFLOAT16, TF32)}


def measure_everything(contender: str) -> str | None:
    """Leave nothing out."""
    return None


@dataclass(frozen=True)
class Options:
    """How to compare. ``leave_out`` gives the reason not to measure a contender, or None."""

    device: str = "cpu"
    backend: str | None = None
    budget: Budget = DEFAULT_BUDGET
    shares: Shares | None = None  # of a run's time, instead of the same budget for each
    targets: dict[str, float] = field(default_factory=dict)
    also: tuple[str, ...] = ()  # more backends of ours to measure beside the chosen one
    leave_out: Callable[[str], str | None] = measure_everything
    keep_going: bool = False  # a failure of ours beyond the first row is a reason too, "FAILED: ..."

    def next_budget(self) -> Budget:
        """How long to measure the next contender."""
        return self.budget if self.shares is None else self.shares.next()

    @property
    def timer(self) -> Timer:
        return timer_for(self.device)


Prepare = Callable[[], tuple[Call, int]]


class Comparison:
    """Rows of one piece of work; the first is ours, and all others are timed in pairs with it.

    Contenders that compile for long wait until :meth:`finish`, so that a run that is out of time has
    measured everything else of all its work.
    """

    def __init__(self, work: str, case: Case, contender: str, ours: Call, options: Options) -> None:
        self._ours, self._options = ours, options
        self._waiting: list[tuple[Row, Prepare]] = []
        spread = measure_alone(ours, timer=options.timer, budget=options.next_budget())
        self.rows = [Row(work, case, contender, spread=spread, peak=self._peak(ours))]

    def _peak(self, call: Call) -> int | None:
        """On a GPU the allocator tells the peak in passing; on the CPU it takes a process of its own."""
        return peak_beyond_outputs(call, "cuda") if self._options.device == "cuda" else None

    def add(self, contender: str, prepare: Prepare, reason: str | None = None) -> None:
        """Time a contender, now or in ``finish()``, or record why not.

        ``prepare`` returns the call and the number of rows in which it differs, after checking that
        these are ties. For a peer, failing or disagreeing is a reason; for ours it raises. Running out
        of memory is a reason for both.
        """
        first = self.rows[0]
        row = Row(first.work, first.case, contender, target=self._options.targets.get(contender))
        row.reason = reason
        self.rows.append(row)
        if reason is not None:
            return
        if starts_slowly(contender):
            row.reason = "not begun: it compiles, and waits for all others"
            self._waiting.append((row, prepare))
        else:
            self._measure(row, prepare)

    @property
    def waiting(self) -> int:
        """How many contenders ``finish()`` would measure."""
        return len(self._waiting)

    def finish(self, shares: Shares | None = None) -> None:
        """Measure the contenders that were put off, in shares of a time of their own if given."""
        if shares is not None:
            self._options = replace(self._options, shares=shares)
        for row, prepare in self._waiting:
            self._measure(row, prepare)
        if self._waiting:
            torch.compiler.reset()
        self._waiting.clear()

    def _measure(self, row: Row, prepare: Prepare) -> None:
        first, options = self.rows[0], self._options
        row.reason = options.leave_out(row.contender)
        if row.reason is not None:
            return
        try:
            call, row.differing_rows = prepare()
            pairs = measure_pairs(self._ours, call, timer=options.timer, budget=options.next_budget())
            row.peak = None if "graph" in row.contender else self._peak(call)  # a graph keeps its memory
        except torch.OutOfMemoryError as error:
            row.reason = f"out of memory: {error}".splitlines()[0]
            torch.cuda.empty_cache()
            return
        except Exception as error:
            if row.is_ours and not options.keep_going:
                raise
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            row.reason = f"FAILED: {message}" if row.is_ours else message
            return
        row.spread, row.ratio, row.pairs = pairs.peer_s, pairs.ratio, len(pairs.ours)
        if first.pairs == 0:
            first.spread, first.pairs = pairs.ours_s, len(pairs.ours)


def one_thread(call: Call) -> Call:
    """The same call on one CPU thread."""

    def run() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return run


def compare_search(case: Case, options: Options, first: str = "exact") -> Comparison:
    """Our search at precision ``first``, then its other precisions and backends, and every peer.

    Raises:
        agreement.Disagreement: before anything is timed, if our results differ by more than ties.
    """
    x, codebook = make_inputs(case, options.device)
    exact = our_search(x, codebook, backend=options.backend)()
    check_against_float64(x, codebook, exact)

    def checked(search: Search, input_unit: float, output_unit: float = 0.0) -> tuple[Call, int]:
        units = {"input_unit": input_unit, "output_unit": output_unit}
        return search, check_indices(x, codebook, exact, search(), ours_is_exact=True, **units)

    def ours(precision: str, backend: str | None) -> tuple[Call, int]:
        search = our_search(x, codebook, precision=precision, backend=backend)
        if precision == "exact" and not torch.equal(search(), exact):
            raise Disagreement(f"exact results of backend {backend} are not those of {options.backend}")
        return checked(search, PRECISION_UNITS[precision])

    def of_peer(peer: Peer) -> tuple[Call, int]:
        return checked(peer.prepare(x, codebook), peer.input_unit, peer.output_unit)

    call, differing = ours(first, options.backend)
    comparison = Comparison("search", case, f"vq_kernels {first}", call, options)
    comparison.rows[0].differing_rows = differing
    for precision in PRECISION_UNITS:
        if precision != first:
            comparison.add(f"vq_kernels {precision}", partial(ours, precision, options.backend))
        for backend in options.also:
            comparison.add(f"vq_kernels {precision}, {backend}", partial(ours, precision, backend))
    if options.device == "cuda":
        # Without the host's share: small searches take the GPU less time than the host.
        comparison.add(f"vq_kernels {first}, CUDA graph", lambda: (captured(call), differing))
    if options.device == "cpu" and torch.get_num_threads() > 1:
        comparison.add(f"vq_kernels {first}, 1 thread", lambda: (one_thread(call), differing))
    for peer in search_peers(options.device, case.dtype):
        comparison.add(peer.name, partial(of_peer, peer), peer.reason)
    return comparison


def compare_layer(case: Case, work: str, options: Options) -> Comparison:
    """Our layer against vector-quantize-pytorch's, each eager and compiled, all from one state.

    ``work`` is ``"forward"`` (inference) or ``"step"`` (forward, backward and EMA update).

    Raises:
        agreement.Disagreement: before anything is timed, if the layers differ beyond rounding.
    """
    train = work == "step"
    make = layers.training_step if train else layers.forward_only
    x = make_inputs(case, options.device)[0][None]

    def our_call(compiled: bool = False, backend: str | None = options.backend) -> Call:
        layer: nn.Module = layers.our_layer(case, options.device, backend)
        if compiled:
            layer.compile(fullgraph=True, dynamic=False)
        return make(layer, x.clone().requires_grad_(train))

    def their_call(compiled: bool) -> tuple[Call, int]:
        ours = layers.our_layer(case, options.device, options.backend)
        theirs = layers.their_layer(case, options.device)
        differing = layers.check_layers(ours, theirs, x, train=train)
        if compiled:
            theirs.compile(dynamic=False)
        return make(theirs, x.clone().requires_grad_(train)), differing

    def ours_of(backend: str) -> tuple[Call, int]:
        return our_call(backend=backend), 0

    comparison = Comparison(work, case, "vq_kernels", our_call(), options)
    if options.device == "cuda":
        if train:
            comparison.rows[0].launches = count_launches(our_call())
        comparison.add("vq_kernels CUDA graph", lambda: (captured(our_call()), 0))
    for name in options.also:
        comparison.add(f"vq_kernels, {name}", partial(ours_of, name))
    comparison.add("vq_kernels compiled", lambda: (our_call(compiled=True), 0))
    reason = layers.peer_reason()
    comparison.add(LAYER_PEER, lambda: their_call(compiled=False), reason)
    comparison.add(f"{LAYER_PEER} compiled", lambda: their_call(compiled=True), reason)
    return comparison
