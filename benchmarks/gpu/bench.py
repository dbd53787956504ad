"""``make gpu-bench``: everything on one CUDA GPU, within nine minutes, in one table and one JSON file.

Order: roofs, the layer's training step, searches, memory over K, curves. Whatever would begin after
its time is listed as not measured, with that reason; a failure of ours is listed, the rest goes on,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .. import machine, scaling
from ..compare import LAYER_PEER, Options, compare_layer, compare_search
from ..measure import Budget, Deadline
from ..memory import SWEEP_D, SWEEP_K, Probe, peak_beyond_outputs, sweep_lines
from ..report import Row, mark_best, table
from ..roofline import Roofs, measure_roofs
from ..work import Case

SECONDS = 510.0  # of the nine minutes, with room for start, memory and writing
BUDGET = Budget(seconds=0.4, sample_s=0.01, min_pairs=5, max_pairs=25)
SWEEP_N = 2**16

STEPS = (Case(2**20, 64, 512), Case(2**20, 64, 512, dtype=torch.bfloat16))
FAST = (
    Case(2**20, 64, 512, dtype=torch.bfloat16),
    Case(2**20, 64, 8192, dtype=torch.bfloat16),
    Case(2**18, 128, 8192, dtype=torch.bfloat16),
    Case(2**18, 256, 16384, dtype=torch.bfloat16),
)
EXACT = (
    Case(2**20, 64, 512),
    Case(2**20, 64, 8192),
    Case(2**20, 64, 8192, "trained"),
    Case(2**18, 256, 16384),
    Case(2**20, 8, 128),
)
TRITON_PEERS = ("flash-kmeans", "flashlib triton")


def targets(work: str, case: Case) -> dict[str, float]:
    """The ratios that DESIGN asks for on an H200, by contender; shown on every GPU."""
    if work == "step":
        return {LAYER_PEER: 10.0}
    if case.dtype == torch.float32:
        return {"chunked matmul": 4.0, "vq_kernels high": 0.67}  # 1 / 1.5
    return dict.fromkeys(TRITON_PEERS, 1.3)


def units_of(row: Row) -> tuple[str, ...]:
    """The arithmetic units whose roof a row is held against."""
    low = row.case.dtype != torch.float32
    if row.work != "search" or "exact" in row.who or "high" in row.who:
        return ("bfloat16",) if low else ("float32", "bfloat16 x3")
    if row.is_ours or not low:
        return ("bfloat16",) if low else ("tf32", "bfloat16")
    return ("bfloat16",)


class GpuBench:
    """One run: rows, failures of ours, and what else is written."""

    def __init__(self, device: str, seconds: float, backend: str | None = None) -> None:
        self.device, self.backend = device, backend
        self.deadline = Deadline(seconds)
        self.roofs: Roofs | None = None
        self.rows: list[Row] = []
        self.failures: list[dict[str, str]] = []
        self.parts: dict[str, Any] = {"roofs": None, "memory_over_k": [], "scaling": []}
        self.save: Callable[[], None] = lambda: None  # called after every part

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

    def options(self, work: str, case: Case) -> Options:
        """Automatic choice, and beside it every other working backend of ours."""
        also: tuple[str, ...] = ()
        if self.backend is None:
            works = [name for name in ("triton", "cuda") if machine.backend_works(name)]
            also = tuple(works[1:])
        return Options(
            self.device,
            self.backend,
            BUDGET,
            targets=targets(work, case),
            also=also,
            leave_out=self.deadline.leave_out,
            keep_going=True,
        )

    def layer(self, case: Case, work: str) -> None:
        self.take(compare_layer(case, work, self.options(work, case)))

    def search(self, case: Case, first: str) -> None:
        self.take(compare_search(case, self.options("search", case), first))

    def take(self, rows: list[Row]) -> None:
        """Keep rows, and note which of ours failed."""
        self.rows += rows
        for row in rows:
            if row.is_ours and (row.reason or "").startswith("FAILED"):
                what = f"{row.work} {row.case.shape}, {row.who}"
                self.failures.append({"what": what, "error": row.reason or ""})

    def measure_roofs(self) -> None:
        self.roofs = measure_roofs(self.device)
        self.parts["roofs"] = self.roofs.as_json()

    def memory(self) -> None:
        rows = self.parts["memory_over_k"]
        for k in SWEEP_K:
            probe = Probe("search", "vq_kernels exact", SWEEP_N, SWEEP_D, k, self.device, self.backend)
            call = probe.make_call()
            call()
            rows.append(
                {"n": probe.n, "d": probe.d, "k": k, "peak_bytes": peak_beyond_outputs(call, self.device)}
            )
            rows[-1] |= {"n_k_bytes": 4 * probe.n * k, "linear_bytes": 4 * (probe.n + k * probe.d)}

    def curves(self) -> None:
        """Whatever time is left is for them: kernels compile at each new D."""
        self.parts["scaling"] = scaling.measure(self.device, seconds=self.deadline.left)

    def results(self, description: dict[str, Any]) -> dict[str, Any]:
        """All that has been found so far."""
        mark_best(self.rows)
        for row in self.rows:
            if self.roofs is not None:
                row.add_shares(self.roofs, units_of(row))
        rows = [row.as_json() for row in self.rows]
        return {**description, **self.parts, "rows": rows, "failures": self.failures,
                "seconds_used": round(self.deadline.seconds - self.deadline.left, 1)}  # fmt: skip

    def everything(self, steps: tuple[Case, ...], fast: tuple[Case, ...], exact: tuple[Case, ...]) -> None:
        """Rows of all parts, most telling first."""
        for case in steps[:1]:
            self.guarded(f"step {case.shape}", partial(self.layer, case, "step"))
        for cases, first in ((fast, "fast"), (exact, "exact")):
            for case in cases:
                self.guarded(f"search {case.shape}", partial(self.search, case, first))
        for case in steps:
            for work in ("forward", "step") if case != steps[0] else ("forward",):
                self.guarded(f"{work} {case.shape}", partial(self.layer, case, work))


def main(arguments: list[str] | None = None) -> int:
    """0 when everything of ours was measured, 1 when something failed, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.bench", description=__doc__)
    parser.add_argument("--backend", help="a backend's name instead of automatic choice")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to use, default %(default)s")
    parser.add_argument("--no-write", action="store_true", help="write no results file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-bench needs a CUDA GPU, and torch sees none on this machine.", file=sys.stderr)
        return 2
    description = machine.describe("cuda")
    bench = GpuBench("cuda", options.seconds, options.backend)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if not options.no_write:  # again after every part: whoever stops the run keeps what there is
        bench.save = lambda: print(f"in {machine.write_results(bench.results(description))}", file=sys.stderr)
    bench.guarded("roofs", bench.measure_roofs)
    bench.everything(STEPS, FAST, EXACT)
    bench.guarded("memory over K", bench.memory)
    bench.guarded("curves", bench.curves)
    bench.results(description)
    print("\n" + table(bench.rows) + "\n")
    print("\n".join(sweep_lines(bench.parts["memory_over_k"])))
    for failure in bench.failures:
        print(f"FAILED {failure['what']}: {failure['error']}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
