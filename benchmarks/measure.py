"""Timing: two calls measured in turn, and the median of the ratios of the pairs.

A machine's speed drifts (frequency, neighbours, temperature), so two medians taken one after the
other compare two moments. Here each pair is measured back to back, in alternating order, and the
ratio is formed inside the pair.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

Call = Callable[[], object]


class Spread(NamedTuple):
    """Median and quartiles of some samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Spread of at least one sample; quartiles by linear interpolation."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


class Timer(Protocol):
    """How a device's time is read."""

    def now(self) -> float:
        """Host seconds, for budgets."""

    def sample(self, call: Call, repeats: int) -> float:
        """Seconds per call over ``repeats`` calls in a row."""


class WallTimer:
    """Host time, for calls that return when their work is done."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock()

    def sample(self, call: Call, repeats: int) -> float:
        start = self._clock()
        for _ in range(repeats):
            call()
        return (self._clock() - start) / repeats


class CpuTimer:
    """The processors' time of this process: what other programs take meanwhile does not count."""

    def now(self) -> float:
        return time.process_time()

    def sample(self, call: Call, repeats: int) -> float:
        start = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - start) / repeats


class CudaTimer:
    """Device time between two events on the current stream."""

    def now(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def sample(self, call: Call, repeats: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats


def timer_for(device: str) -> Timer:
    """The timer of a device type."""
    return CudaTimer() if device == "cuda" else WallTimer()


def processor_timer() -> Timer:
    """Of work on the CPU: its own time where one thread works, so that other programs hardly matter.

    For more threads, whose waiting is a part of what they take, the clock.
    """
    return CpuTimer() if torch.get_num_threads() == 1 else WallTimer()


@dataclass(frozen=True)
class Pairs:
    """Seconds per call of both sides, pair by pair."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ratio(self) -> Spread:
        """How many times the peer's time is ours: above 1, we are faster."""
        return Spread.of([p / o for o, p in zip(self.ours, self.peer, strict=True)])

    @property
    def ours_s(self) -> Spread:
        return Spread.of(self.ours)

    @property
    def peer_s(self) -> Spread:
        return Spread.of(self.peer)

    def __str__(self) -> str:
        """Our milliseconds, the peer's, and the ratio with its spread."""
        ratio, ours, peer = self.ratio, 1e3 * self.ours_s.median, 1e3 * self.peer_s.median
        return f"{ours:8.3f} of {peer:8.3f}  {ratio.median:5.2f}x [{ratio.low:.2f} {ratio.high:.2f}]"


@dataclass(frozen=True)
class Budget:
    """How long to measure: samples of at least ``sample_s``, pairs until ``seconds`` are used.

    ``min_pairs`` come first, but not beyond ``longest``, counted from the first call: a contender that is
    far slower than expected gets fewer, one at least.
    """

    seconds: float = 2.0
    sample_s: float = 0.01
    min_pairs: int = 5
    max_pairs: int = 25
    longest: float = math.inf

    def spent(self, samples: int, measuring: float, whole: float) -> bool:
        """Whether to stop after ``samples``, given the seconds spent on them and since the first call."""
        if samples >= self.max_pairs:
            return True
        return (samples >= self.min_pairs and measuring > self.seconds) or (
            samples >= 1 and whole > self.longest
        )


DEFAULT_BUDGET = Budget()


SLOW_START_S = 30.0  # what compiling a contender may take


def starts_slowly(contender: str) -> bool:
    """Whether a contender compiles for long before its first call."""
    return "compiled" in contender or "cute" in contender


class Shares:
    """Equal shares of the time that is left, for the contenders still to come.

    A third of a share is for the pairs: checking, compiling and the first calls come on top.
    """

    def __init__(self, deadline: Deadline, contenders: int, budget: Budget) -> None:
        self._deadline, self._left, self._budget = deadline, contenders, budget

    def next(self) -> Budget:
        """The budget of the next contender."""
        share = max(0.0, self._deadline.left) / max(1, self._left)
        self._left -= 1
        return replace(self._budget, seconds=min(self._budget.seconds, share / 3), longest=share)


class Deadline:
    """What a run may still begin, so that it ends in the time it was given.

    The last 15% of the time are for ours alone; what compiles for long may begin in the first 60%, and
    where at least 30 s are left.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self.seconds = clock, clock(), seconds
        self.spent = f"no time left of the {seconds:g} s of a run"

    @property
    def used(self) -> float:
        """Share of the time used up."""
        return (self._clock() - self._start) / self.seconds

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._start + self.seconds - self._clock()

    def leave_out(self, contender: str) -> str | None:
        """The reason not to begin with a contender, or None."""
        if starts_slowly(contender):
            return None if self.used < 0.6 and self.left >= SLOW_START_S else self.spent
        return None if self.used < (1.0 if contender.startswith("vq_kernels") else 0.85) else self.spent


# Before a sample of a short call, one untimed call brings its own data and threads back: the other
# side has just had the caches, and its thread pool may still be spinning.
_SETTLE_BELOW_S = 0.1


def measure_pairs(ours: Call, peer: Call, *, timer: Timer, budget: Budget = DEFAULT_BUDGET) -> Pairs:
    """Measure both calls in turn, which side goes first alternating from pair to pair.

    Both are called twice beforehand: once to compile and allocate, once to choose how many calls make
    a sample.
    """
    sides, begun = (ours, peer), timer.now()
    repeats, settles = [], []
    for call in sides:
        call()
        once = max(timer.sample(call, 1), 1e-9)
        repeats.append(max(1, min(1000, round(budget.sample_s / once))))
        settles.append(once < _SETTLE_BELOW_S)
    samples: tuple[list[float], list[float]] = ([], [])
    start = timer.now()
    with paused_collector():
        while not budget.spent(len(samples[0]), timer.now() - start, timer.now() - begun):
            order = (0, 1) if len(samples[0]) % 2 == 0 else (1, 0)
            for side in order:
                if settles[side]:
                    sides[side]()
                samples[side].append(timer.sample(sides[side], repeats[side]))
    return Pairs(tuple(samples[0]), tuple(samples[1]))


def measure_alone(call: Call, *, timer: Timer, budget: Budget = DEFAULT_BUDGET) -> Spread:
    """Seconds per call of one side, for roofs and curves."""
    begun = timer.now()
    call()
    once = max(timer.sample(call, 1), 1e-9)
    repeats = max(1, min(1000, round(budget.sample_s / once)))
    samples: list[float] = []
    start = timer.now()
    with paused_collector():
        while not budget.spent(len(samples), timer.now() - start, timer.now() - begun):
            samples.append(timer.sample(call, repeats))
    return Spread.of(samples)


@contextmanager
def paused_collector() -> Iterator[None]:
    """No cyclic garbage collection inside: it would land in one side's sample."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
