"""``make gpu-check``: is everything right on this GPU? One table, one JSON file, within nine minutes.

The checks of ``checks.py``, the operations' own tests with ``VQ_TEST_DEVICE=cuda`` and compute-sanitizer, for
Triton and CUDA C++ each; ``--parts`` takes some of them. Exit status: 0 all right, 1 something failed, 2 no
CUDA GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vq_kernels import available_backends

from ..machine import RESULTS, describe, machine_name, write_json
from .checks import CHECKS, Check
from .faults import NotHere, is_fatal
from .operation_tests import run_tests
from .sanitized import TOOLS, passes_sanitizer
from .target import BACKENDS, Target, add_arguments, open_target

SECONDS = 510.0
PARTS = (*CHECKS, "tests", "sanitizer")
FILE, REPORT = "check.json", "tests.xml"
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass
class Result:
    """One line of the table."""

    check: str
    backend: str
    status: str
    detail: str
    seconds: float = 0.0


def run_check(name: str, backend: str, check: Callable[[], str]) -> Result:
    """The result of one check; no exception passes."""
    start = time.monotonic()
    try:
        status, detail = PASSED, check()
    except NotHere as reason:
        status, detail = SKIPPED, str(reason)
    except Exception as error:
        traceback.print_exc()
        status, detail = FAILED, f"{type(error).__name__}: {error}"
    return Result(name, backend, status, detail, round(time.monotonic() - start, 1))


class Run:
    """The checks of some parts for some backends, within a time.

    ``save`` gets all results so far after each of them, so that a run that is stopped leaves them behind.
    After a fatal fault this process can check nothing more; tests and sanitizer have processes of their own.
    """

    def __init__(
        self,
        target: Target,
        seconds: float,
        parts: Sequence[str] = PARTS,
        clock: Callable[[], float] = time.monotonic,
        save: Callable[[list[Result]], object] = lambda results: None,
        report: Path | None = None,
    ) -> None:
        self.target, self.parts, self.report = target, parts, report
        self.results: list[Result] = []
        self._clock, self._save = clock, save
        self._end = clock() + seconds
        self._fault: str | None = None

    def backends(self, names: Sequence[str]) -> list[Result]:
        """Everything for each backend that works here; one that does not is a failure."""
        registered = {name: self.target.backend(name) for name in names}
        unavailable = available_backends()
        for name in names:
            if (reason := unavailable[registered[name]]) is not None:
                self._add(Result("available", name, FAILED, reason))
        working = [name for name in names if unavailable[registered[name]] is None]
        for i, name in enumerate(working):
            stop = self._clock() + (self._end - self._clock()) / (len(working) - i)  # of this backend
            self._one(name, registered[name], stop)
        return self.results

    def _one(self, name: str, registered: str, stop: float) -> None:
        for part in self.parts:
            for check, function in CHECKS.get(part, {}).items():
                self._ask(check, name, function, registered)
        if "tests" in self.parts:
            reserve = 60.0 if "sanitizer" in self.parts else 0.0
            limit = max(30.0, stop - self._clock() - reserve)
            self._begin("tests of the operations", name, lambda: self._tests([name], limit))
        if "sanitizer" in self.parts:
            self._sanitize(name, stop)

    def _tests(self, names: Sequence[str], limit: float) -> str:
        return run_tests(names, limit, self.target, self.report)

    def tests_together(self, names: Sequence[str]) -> list[Result]:
        """The tests of several backends in one run of pytest."""
        limit = self._end - self._clock()
        self._begin("tests of the operations", " and ".join(names), lambda: self._tests(names, limit))
        return self.results

    def _ask(self, check: str, name: str, function: Check, registered: str) -> None:
        if self._fault is not None:
            self._add(Result(check, name, SKIPPED, f"not asked after a fatal fault in {self._fault}"))
            return
        result = self._begin(check, name, lambda: function(registered, self.target))
        if result.status == FAILED and is_fatal(result.detail):
            self._fault = f"{check}, {name}"

    def _sanitize(self, name: str, stop: float) -> None:
        """All tools side by side: they spend their time in processes of their own."""
        limit = min(100.0, max(15.0, stop - self._clock()))
        tools = self.target.choose(TOOLS, TOOLS[:1])
        with ThreadPoolExecutor(len(tools)) as pool:
            waiting = [
                pool.submit(
                    run_check,
                    f"compute-sanitizer {tool}",
                    name,
                    lambda tool=tool: passes_sanitizer(tool, name, self.target, limit),  # type: ignore[misc]
                )
                for tool in tools
            ]
            for result in waiting:
                self._add(result.result())

    def _begin(self, check: str, name: str, function: Callable[[], str]) -> Result:
        print(f"{name}: {check}", file=sys.stderr, flush=True)
        if self._clock() >= self._end:
            result = Result(check, name, SKIPPED, "no time left")
        else:
            result = run_check(check, name, function)
        return self._add(result)

    def _add(self, result: Result) -> Result:
        self.results.append(result)
        self._save(self.results)
        return result


# --- table and file ------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """Aligned columns; a long detail is cut here and whole in the file."""
    lines = [("check", "backend", "status", "s", "detail")]
    for r in results:
        detail = r.detail.splitlines()[0] if r.detail else ""
        lines.append((r.check, r.backend, r.status, f"{r.seconds:.1f}", detail[:100]))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line[:4], widths, strict=True)), line[4]]
        ).rstrip()
        for line in lines
    )


def write(results: list[Result], description: dict[str, Any], path: Path, *, keep: bool = False) -> None:
    """Machine, versions, commit and date with every result.

    With ``keep``, results of other checks and backends that the file has are kept: the calls of a session
    share it, some of them at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        others: list[Result] = []
        if keep and path.exists():
            measured = {(r.check, r.backend) for r in results}
            others = [Result(**r) for r in json.loads(path.read_text())["results"]]
            others = [r for r in others if (r.check, r.backend) not in measured]
        everything = [*others, *results]
        failed = sum(r.status == FAILED for r in everything)
        write_json(path, {**description, "failed": failed, "results": [asdict(r) for r in everything]})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the folder itself is the lock, so that no file is left in it."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main(arguments: list[str] | None = None) -> int:
    """0 when nothing failed, 1 when something did, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="default: both")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to use, default %(default)s")
    parser.add_argument("--no-write", action="store_true", help="write no results file")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "gpu-check")) is None:
        return 2
    description = describe(target.device)
    path, report = RESULTS / f"{machine_name(target.device)}-check.json", None
    if options.out is not None:
        path, report = options.out / FILE, options.out / REPORT

    def save(results: list[Result]) -> None:
        if not options.no_write:
            write(results, description, path, keep=options.out is not None)

    run = Run(target, options.seconds, options.parts, save=save, report=report)
    backends = options.backend or list(BACKENDS)
    if tuple(options.parts) == ("tests",):  # one pytest for all: its workers share what they compile
        results = run.tests_together(backends)
    else:
        results = run.backends(backends)
    print(f"\n{description['machine']['name']}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print(table(results))
    save(results)
    if not options.no_write:
        print(f"\nwritten: {path}")
    counts = {status: sum(r.status == status for r in results) for status in (PASSED, FAILED, SKIPPED)}
    words = [f"{number} {status}" for status, number in counts.items() if number]
    print("; ".join([", ".join(words), *(r.detail.splitlines()[0] for r in results if r.status == FAILED)]))
    return 1 if counts[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
