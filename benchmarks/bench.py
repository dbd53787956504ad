"""``make bench``: the representative set on this machine's CPU, in one table, in under five minutes.

Time, ratio to every peer (``*`` the best), share of the machine's roof, peak memory beyond inputs and
outputs; written to ``benchmarks/results/<machine>-<date>.json``. ``METHOD.md`` says how it is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from . import machine
from .compare import LAYER_PEER, Comparison, Options, compare_layer, compare_search
from .measure import Budget, Deadline
from .memory import Probe, measure_probes, sweep, sweep_lines
from .report import Row, mark_best, table
from .roofline import Roofs, measure_roofs
from .work import Case

SECONDS = 240.0  # of the five minutes, with room for memory
WORK = (
    ("step", Case(65536, 64, 512)),
    ("search", Case(65536, 8, 128)),
    ("search", Case(65536, 64, 512)),
    ("search", Case(16384, 64, 8192)),
    ("search", Case(8192, 256, 8192)),
    ("search", Case(8192, 256, 8192, "trained")),
    ("forward", Case(65536, 64, 512)),
)
BUDGET = Budget(seconds=1.0, sample_s=0.01, min_pairs=5, max_pairs=25)


def targets(work: str, case: Case, isa: str) -> dict[str, float]:
    """The ratios that DESIGN asks for on this CPU, by peer; empty where it asks for none."""
    if work == "step":
        return {LAYER_PEER: 8.0, f"{LAYER_PEER} compiled": 3.0}
    if work == "search" and case.d <= 64 and isa in ("avx512", "amx"):
        return {"faiss-cpu": 2.0, "torch.cdist": 6.0}
    if work == "search" and case.d >= 256 and isa == "amx":
        return {"faiss-cpu": 3.0}
    return {}


def collect_rows(
    only: str, backend: str | None, isa: str, leave_out: Callable[[str], str | None]
) -> list[Row]:
    """Every row whose title contains ``only``; says on stderr what is being measured."""
    comparisons: list[Comparison] = []
    for name, case in WORK:
        if only not in f"{name} {case.shape}":
            continue
        print(f"measuring {name} {case.shape}", file=sys.stderr, flush=True)
        options = Options("cpu", backend, BUDGET, targets=targets(name, case, isa), leave_out=leave_out)
        search = name == "search"
        comparisons.append(compare_search(case, options) if search else compare_layer(case, name, options))
    print("measuring what compiles", file=sys.stderr, flush=True)
    for comparison in comparisons:
        comparison.finish()
    rows = [row for comparison in comparisons for row in comparison.rows]
    mark_best(rows)
    return rows


def add_memory(rows: list[Row], backend: str | None) -> None:
    """Peak memory of every measured row whose contender has a process of its own to run in."""
    measured = [r for r in rows if r.spread is not None and "1 thread" not in r.contender]
    probes = [Probe(r.work, r.contender, r.case.n, r.case.d, r.case.k, backend=backend) for r in measured]
    for row, peak in zip(measured, measure_probes(probes) if probes else (), strict=True):
        row.peak = peak


def results_json(
    description: dict[str, Any], rows: list[Row], roofs: Roofs, memory: list[dict[str, Any]], started: float
) -> dict[str, Any]:
    """Everything measured, with machine, versions, commit and date."""
    return {
        **description,
        "roofs": roofs.as_json(),
        "rows": [row.as_json() for row in rows],
        "memory_over_k": memory,
        "seconds": round(time.perf_counter() - started, 1),
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
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    description = machine.describe("cpu")
    cpu = description["machine"]["cpu"]
    print(f"{cpu['model']}, {description['threads']} threads, torch {description['versions']['torch']}")
    busy = machine.load_warning(description)
    if busy:
        print(busy)
    roofs = measure_roofs("cpu")
    print(
        f"roofs: float32 {roofs.float32 / 1e9:.0f} GFLOP/s, bfloat16 {roofs.bfloat16 / 1e9:.0f} GFLOP/s, "
        f"copy {roofs.memory / 1e9:.1f} GB/s"
    )
    deadline = Deadline(SECONDS)

    def leave_out(contender: str) -> str | None:
        if options.no_compile and "compiled" in contender:
            return "left out by --no-compile"
        return deadline.leave_out(contender)

    isa = cpu["kernels"]["used"] if isinstance(cpu["kernels"], dict) else "none"
    rows = collect_rows(options.only, options.backend, isa, leave_out)
    for row in rows:
        row.add_shares(roofs, ("float32", "bfloat16") if row.is_ours else ("float32",))
    memory: list[dict[str, Any]] = []
    if not options.no_memory:
        print("measuring memory", file=sys.stderr, flush=True)
        add_memory(rows, options.backend)
        memory = sweep("cpu", options.backend)
    print("\n" + table(rows))
    if memory:
        print("\n" + "\n".join(sweep_lines(memory)))
    results = results_json(description, rows, roofs, memory, started)
    print(f"\n{results['seconds']:.0f} s, {torch.get_num_threads()} threads")
    if not options.no_write:
        print(f"written to {machine.write_results(results).relative_to(machine.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
