"""``make gpu-bench``: everything on one CUDA GPU, within nine minutes, in one table and one JSON file.

Parts: roofs, the layer, searches, equal codes, memory over K, curves; ``--parts`` takes some of them.
Contenders that compile come after everything else. Whatever would begin after its time is listed as not
measured, with that reason; a failure of ours is listed, the rest goes on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vq_kernels.backends import get_backend

from .. import machine, scaling
from ..compare import Comparison, Options, compare_layer, compare_search
from ..measure import Budget, Deadline, starts_slowly
from ..memory import SWEEP_D, SWEEP_K, Probe, peak_beyond_outputs, sweep_lines
from ..report import Row, mark_best, table
from ..roofline import Roofs, measure_roofs
from ..work import Case
from . import equal_codes, open_rows
from .problems import problems_of, targets, units_of
from .target import Target, add_arguments, open_target

SECONDS = 510.0  # of the nine minutes, with room for start, memory and writing
BUDGET = Budget(seconds=0.3, sample_s=0.01, min_pairs=5, max_pairs=25)
TINY_BUDGET = Budget(seconds=0.0, sample_s=0.0, min_pairs=1, max_pairs=1)
SWEEP_N = 2**16
FILE = "bench.json"


class GpuBench:
    """One run: rows, failures of ours, and what else is written.

    ``earlier`` is what another call of the same session left in the file; it is kept.
    """

    def __init__(
        self,
        target: Target,
        seconds: float,
        backend: str | None = None,
        *,
        compiled: bool = True,
        earlier: dict[str, Any] | None = None,
    ) -> None:
        self.target, self.backend, self.compiled = target, backend, compiled
        self.device = target.device
        self.problems = problems_of(target)
        self.budget = target.choose(BUDGET, TINY_BUDGET)
        self.deadline = Deadline(seconds)
        self.roofs: Roofs | None = None
        self.comparisons: list[Comparison] = []
        self.failures: list[dict[str, str]] = []
        self.parts: dict[str, Any] = {
            "roofs": None,
            "open_rows": [],
            "equal_codes": [],
            "memory_over_k": [],
            "scaling": [],
        }
        self.earlier = earlier or {}
        self.save: Callable[[], None] = lambda: None  # called after every part

    @property
    def rows(self) -> list[Row]:
        return [row for comparison in self.comparisons for row in comparison.rows]

    def guarded(self, what: str, action: Callable[[], Any]) -> Any:
        """Run a part; a failure is printed and recorded, and the other parts still run."""
        try:
            return self._tried(what, action)
        finally:
            self.save()

    def _tried(self, what: str, action: Callable[[], Any]) -> Any:
        print(f"[{self.deadline.used:4.0%}] {what}", file=sys.stderr, flush=True)
        if self.deadline.used >= 1.0:
            self.failures.append({"what": what, "error": self.deadline.spent})
            return None
        try:
            return action()
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            self.failures.append({"what": what, "error": message})
            return None

    def leave_out(self, contender: str) -> str | None:
        if not self.compiled and starts_slowly(contender):
            return "left out by --no-compile"
        return self.deadline.leave_out(contender)

    def options(self, work: str, case: Case) -> Options:
        """Automatic choice, and beside it every other working backend of ours."""
        also: tuple[str, ...] = ()
        if self.backend is None:
            works = [name for name in ("triton", "cuda") if machine.backend_works(name)]
            also = self.target.choose(tuple(works[1:]), ())
        return Options(
            self.device,
            self.backend,
            self.budget,
            targets=targets(work, case),
            also=also,
            leave_out=self.leave_out,
            keep_going=True,
        )

    # --- parts ------------------------------------------------------------------------------------

    def run(self, parts: tuple[str, ...]) -> None:
        """The parts in their order, then the contenders that compile, and curves in the time that is left."""
        for part in parts:
            if part != "curves":
                getattr(self, f"part_{part}")()
        for comparison in self.comparisons:
            first = comparison.rows[0]
            if comparison.waiting:
                self.guarded(f"compiled contenders of {first.work} {first.case.shape}", comparison.finish)
        if "curves" in parts:
            self.part_curves()
        self.failures += ours_that_failed(self.rows)
        self.save()

    def part_roofs(self) -> None:
        self.guarded("roofs", self._measure_roofs)

    def _measure_roofs(self) -> None:
        self.roofs = measure_roofs(self.device)
        self.parts["roofs"] = self.roofs.as_json()

    def part_layer(self) -> None:
        for work, case in self.problems.layers:
            self.guarded(f"{work} {case.shape}", partial(self._layer, case, work))

    def _layer(self, case: Case, work: str) -> None:
        self.comparisons.append(compare_layer(case, work, self.options(work, case)))

    def part_search(self) -> None:
        for case in self.problems.searches:
            self.guarded(f"search {case.shape}", partial(self._search, case))

    def _search(self, case: Case) -> None:
        first = "exact" if case.dtype == torch.float32 else "fast"
        self.comparisons.append(compare_search(case, self.options("search", case), first))
        if first != "exact":
            return
        for name in ("triton", "cuda"):
            backend = self.target.backend(name)
            if get_backend(backend).unavailable_reason() is None:
                shares = open_rows.shares(case, self.device, backend)
                self.parts["open_rows"].append(
                    {"n": case.n, "d": case.d, "k": case.k, "data": case.data, **shares}
                )

    def part_equal_codes(self) -> None:
        self.guarded("equal codes", self._equal_codes)

    def _equal_codes(self) -> None:
        backends = (
            [self.backend] if self.backend else list(self.target.choose(("triton", "cuda"), ("native",)))
        )
        for backend in backends:
            records = equal_codes.measure(self.problems.equal_codes, self.device, backend, self.budget)
            self.parts["equal_codes"] += records
            self.save()

    def part_memory(self) -> None:
        self.guarded("memory over K", self._memory)

    def _memory(self) -> None:
        rows = self.parts["memory_over_k"]
        for k in self.target.choose(SWEEP_K, SWEEP_K[:1]):
            probe = Probe("search", "vq_kernels exact", SWEEP_N, SWEEP_D, k, self.device, self.backend)
            call = probe.make_call()
            call()
            rows.append(
                {"n": probe.n, "d": probe.d, "k": k, "peak_bytes": peak_beyond_outputs(call, self.device)}
            )
            rows[-1] |= {"n_k_bytes": 4 * probe.n * k, "linear_bytes": 4 * (probe.n + k * probe.d)}

    def part_curves(self) -> None:
        """Whatever time is left is for them: kernels compile at each new D."""
        self.guarded("curves", self._curves)

    def _curves(self) -> None:
        self.parts["scaling"] = scaling.measure(self.device, seconds=max(0.0, self.deadline.left))

    def results(self, description: dict[str, Any]) -> dict[str, Any]:
        """All that has been found so far."""
        mark_best(self.rows)
        for row in self.rows:
            if self.roofs is not None and not self.target.is_rehearsal:
                row.add_shares(self.roofs, units_of(row))
        rows = [*self.earlier.get("rows", []), *(row.as_json() for row in self.rows)]
        parts = {name: value or self.earlier.get(name, value) for name, value in self.parts.items()}
        failures = [*self.earlier.get("failures", []), *self.failures]
        seconds = round(self.deadline.seconds - self.deadline.left, 1)
        return {**description, **parts, "rows": rows, "failures": failures, "seconds_used": seconds}


PARTS = tuple(name.removeprefix("part_") for name in vars(GpuBench) if name.startswith("part_"))


def ours_that_failed(rows: list[Row]) -> list[dict[str, str]]:
    """What is no reason not to measure, but a failure: ours raised, or disagreed."""
    return [
        {"what": f"{row.work} {row.case.shape}, {row.contender}", "error": row.reason}
        for row in rows
        if row.is_ours and (row.reason or "").startswith("FAILED") and row.reason is not None
    ]


def main(arguments: list[str] | None = None) -> int:
    """0 when everything of ours was measured, 1 when something failed, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bench", description=__doc__)
    parser.add_argument("--backend", help="a backend's name instead of automatic choice")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all, in this order"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to use, default %(default)s")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out contenders that compile for long"
    )
    parser.add_argument("--no-write", action="store_true", help="write no results file")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "gpu-bench")) is None:
        return 2
    description = machine.describe(target.device)
    path: Path | None = None if options.out is None else options.out / FILE
    earlier = json.loads(path.read_text()) if path is not None and path.exists() else None
    bench = GpuBench(
        target, options.seconds, options.backend, compiled=not options.no_compile, earlier=earlier
    )
    print(f"{description['machine']['name']}, torch {torch.__version__}, CUDA {torch.version.cuda}")

    def save() -> None:
        results = bench.results(description)
        if path is not None:
            machine.write_json(path, results)
        else:
            print(f"in {machine.write_results(results)}", file=sys.stderr)

    if not options.no_write:  # again after every part: whoever stops the run keeps what there is
        bench.save = save
    bench.run(tuple(part for part in PARTS if part in options.parts))
    bench.results(description)
    print("\n" + table(bench.rows) + "\n")
    if bench.parts["open_rows"]:
        print("\n".join(open_rows.lines(bench.parts["open_rows"])))
    if bench.parts["equal_codes"]:
        print("\n".join(equal_codes.lines(bench.parts["equal_codes"])))
    if bench.parts["memory_over_k"]:
        print("\n".join(sweep_lines(bench.parts["memory_over_k"])))
    for failure in bench.failures:
        print(f"FAILED {failure['what']}: {failure['error']}")
    measured = sum(row.spread is not None for row in bench.rows)
    print(f"{measured} of {len(bench.rows)} rows measured, {len(bench.failures)} failures")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
