"""``make bench``: the representative set on this machine's CPU, in one table, in under five minutes.

Time, ratio to every peer (``*`` the best), share of the machine's roof, peak memory beyond inputs and
outputs; written to ``benchmarks/results/<machine>-<date>.json``. ``METHOD.md`` says how it is measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import cliffs, machine
from .compare import LAYER_PEER, Comparison, Options, compare_layer, compare_search
from .measure import SLOW_START_S, Budget, Deadline, Shares, starts_slowly
from .memory import Probe, measure_probes, sweep, sweep_lines
from .peers import search_peers
from .report import Row, mark_best, table
from .roofline import Roofs, first_pass_unit, measure_roofs
from .work import Case

SECONDS = 280.0  # of the five minutes
# For everything that does not compile; the rest of the time is for memory, then for what compiles.
ESSENTIAL_S = 170.0
WORK = (
    ("step", Case(65536, 64, 512)),
    ("search", Case(65536, 8, 128)),
    ("search", Case(65536, 64, 512)),
    ("search", Case(16384, 64, 8192)),
    ("search", Case(8192, 256, 8192)),
    ("search", Case(8192, 256, 8192, "trained")),
    ("forward", Case(65536, 64, 512)),
)
CLIFF_BUDGET = Budget(seconds=0.15, sample_s=0.01, min_pairs=3, max_pairs=9)
BUDGET = Budget(seconds=1.0, sample_s=0.01, min_pairs=5, max_pairs=25)


def title(work: str, case: Case) -> str:
    """What ``--only`` is compared with."""
    return f"{work} {case.shape}"


def targets(work: str, case: Case, isa: str) -> dict[str, float]:
    """The ratios to reach on a CPU with these kernels, by peer; empty where none is set."""
    if work == "step":
        return {LAYER_PEER: 8.0, f"{LAYER_PEER} compiled": 3.0}
    if work == "search" and case.d <= 64 and isa in ("avx512", "amx"):
        return {"faiss-cpu": 2.0, "torch.cdist": 6.0}
    if work == "search" and case.d >= 256 and isa == "amx":
        return {"faiss-cpu": 3.0}
    return {}


def contenders(work: str) -> int:
    """How many contenders a piece of work has at most, those that compile left out."""
    if work != "search":
        return 2
    peers = [p for p in search_peers() if p.reason is None and not starts_slowly(p.name)]
    return 4 + len(peers)  # three precisions of ours, and one on one thread


def compare(work: Sequence[tuple[str, Case]], options: Callable[[str, Case], Options]) -> list[Comparison]:
    """Every piece of work, without what compiles; says on stderr what is being measured."""
    comparisons = []
    for name, case in work:
        print(f"measuring {title(name, case)}", file=sys.stderr, flush=True)
        chosen = options(name, case)
        comparisons.append(
            compare_search(case, chosen) if name == "search" else compare_layer(case, name, chosen)
        )
    return comparisons


def add_memory(rows: list[Row], backend: str | None) -> None:
    """Peak memory of every measured row whose contender has a process of its own to run in."""
    measured = [r for r in rows if r.spread is not None and "1 thread" not in r.contender]
    probes = [Probe(r.work, r.contender, r.case.n, r.case.d, r.case.k, backend=backend) for r in measured]
    for row, peak in zip(measured, measure_probes(probes) if probes else (), strict=True):
        row.peak = peak


def typical_spread(rows: list[Row]) -> float | None:
    """Half the distance between a row's quartiles over its median, of the median row; None without rows."""
    spreads = [(r.spread.high - r.spread.low) / (2 * r.spread.median) for r in rows if r.spread is not None]
    return statistics.median(spreads) if spreads else None


def chosen_work(only: str) -> list[tuple[str, Case]]:
    """The work whose title contains ``only``.

    Raises:
        ValueError: there is none; the message lists the titles.
    """
    work = [(name, case) for name, case in WORK if only in title(name, case)]
    if not work:
        titles = ", ".join(repr(title(name, case)) for name, case in WORK)
        raise ValueError(f"--only is {only!r}; accepted: a part of one of {titles}")
    return work


class Bench:
    """One run: what does not compile first, then memory, then what compiles in the time that is left."""

    def __init__(
        self, work: Sequence[tuple[str, Case]], backend: str | None, isa: str, compiled: bool
    ) -> None:
        self.work, self.backend, self.isa, self.compiled = work, backend, isa, compiled
        self.deadline = Deadline(SECONDS)
        self.comparisons: list[Comparison] = []
        self.memory: list[dict[str, Any]] = []
        self.cliffs: dict[str, float] = {}

    @property
    def rows(self) -> list[Row]:
        return [row for comparison in self.comparisons for row in comparison.rows]

    def leave_out(self, contender: str) -> str | None:
        """Only what compiles is ever left out."""
        if not starts_slowly(contender):
            return None
        if not self.compiled:
            return "left out by --no-compile"
        return None if self.deadline.left >= SLOW_START_S else self.deadline.spent

    def measure_essentials(self) -> None:
        shares = Shares(Deadline(ESSENTIAL_S), sum(contenders(name) for name, _ in self.work), BUDGET)
        self.comparisons = compare(
            self.work,
            lambda name, case: Options(
                "cpu",
                self.backend,
                shares=shares,
                targets=targets(name, case, self.isa),
                leave_out=self.leave_out,
            ),
        )

    def measure_memory(self) -> None:
        print("measuring memory", file=sys.stderr, flush=True)
        add_memory(self.rows, self.backend)
        self.memory = sweep("cpu", self.backend)

    def measure_cliffs(self) -> None:
        print("measuring awkward inputs", file=sys.stderr, flush=True)
        self.cliffs = dict(cliffs.table(CLIFF_BUDGET))

    def measure_compiled(self) -> None:
        print("measuring what compiles", file=sys.stderr, flush=True)
        shares = Shares(self.deadline, sum(c.waiting for c in self.comparisons), BUDGET)
        for comparison in self.comparisons:
            comparison.finish(shares)


def results_json(
    description: dict[str, Any], bench: Bench, roofs: Roofs, steal: float | None, seconds: float
) -> dict[str, Any]:
    """Everything measured, with machine, versions, commit and date."""
    return {
        **description,
        "steal": steal,
        "spread": typical_spread(bench.rows),
        "roofs": roofs.as_json(),
        "rows": [row.as_json() for row in bench.rows],
        "memory_over_k": bench.memory,
        "cliffs": bench.cliffs,
        "seconds": round(seconds, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the results file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", default="", help="only work whose title contains this, such as 'step' or 'D=256'"
    )
    parser.add_argument("--backend", help="a backend's name instead of automatic choice")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile's contenders out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--no-write", action="store_true", help="write no results file")
    parser.add_argument("--cliffs", action="store_true", help="search for the slowest input instead")
    parser.add_argument("--seconds", type=float, default=60.0, help="of that search (60)")
    parser.add_argument("--seed", type=int, default=0, help="of that search (0)")
    options = parser.parse_args(arguments)
    try:
        work = chosen_work(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.cliffs:
        for line in cliffs.find_worst(options.seconds, options.seed):
            print(line, flush=True)
        return 0
    started, steal = time.perf_counter(), machine.StealMeter()
    description = machine.describe("cpu")
    cpu = description["machine"]["cpu"]
    print(f"{cpu['model']}, {description['threads']} threads, torch {description['versions']['torch']}")
    isa = cpu["kernels"]["used"] if isinstance(cpu["kernels"], dict) else "none"
    bench = Bench(work, options.backend, isa, not options.no_compile)
    roofs = measure_roofs("cpu")
    print(
        f"roofs: float32 {roofs.float32 / 1e9:.0f} GFLOP/s, "
        + (f"bfloat16 {roofs.bfloat16 / 1e9:.0f} GFLOP/s, " if roofs.bfloat16 else "")
        + (f"int8 {roofs.int8 / 1e9:.0f} GOP/s, " if roofs.int8 else "")
        + (f"int16 {roofs.int16 / 1e9:.0f} GOP/s, " if roofs.int16 else "")
        + f"copy {roofs.memory / 1e9:.1f} GB/s"
    )
    bench.measure_essentials()
    if not options.only and options.backend is None and cliffs.reason() is None:
        bench.measure_cliffs()
    if not options.no_memory:
        bench.measure_memory()
    bench.measure_compiled()
    mark_best(bench.rows)
    for row in bench.rows:
        native = row.is_ours and options.backend in (None, "native")
        row.add_shares(roofs, (first_pass_unit(row.case) if native else "float32",))
    print("\n" + table(bench.rows))
    if bench.cliffs:
        print(f"\nsearch of {cliffs.SIZE.n} x {cliffs.SIZE.d} x {cliffs.SIZE.k}, times random rows and codes")
        print("\n".join(f"  {name:40} {ratio:6.1f}" for name, ratio in bench.cliffs.items()))
    if bench.memory:
        print("\n" + "\n".join(sweep_lines(bench.memory)))
    results = results_json(description, bench, roofs, steal.share(), time.perf_counter() - started)
    print(f"\n{results['seconds']:.0f} s, {torch.get_num_threads()} threads")
    if warning := machine.load_warning(description["load"], results["steal"], results["spread"]):
        print(warning)
    if not options.no_write:
        print(f"written to {machine.write_results(results).relative_to(machine.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
