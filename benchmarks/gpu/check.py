"""``make gpu-check``: is everything right on this GPU? One table, one JSON file, within nine minutes.

First the checks of ``gpu_checks.py``, then the operations' own tests with ``VQ_TEST_DEVICE=cuda``, for
Triton and CUDA C++ each. Exit status: 0 all right, 1 something failed, 2 no CUDA GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from vq_kernels import available_backends

from ..machine import RESULTS, ROOT, describe, machine_name
from .checks import CHECKS, SANITIZERS, Check, NotHere, passes_sanitizer

BACKENDS = ("cuda", "triton")
TESTS = (
    *(f"tests/operators/test_{name}.py" for name in ("operations", "gradients", "registration")),
    *(f"tests/backends/test_{name}.py" for name in ("exactness", "edge_cases")),
    "tests/test_properties.py",
)
OWN_TESTS = {"triton": ("tests/backends/test_triton.py", "tests/backends/test_triton_launch.py"), "cuda": ()}
SECONDS = 510.0
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass
class Result:
    """One line of the table."""

    check: str
    backend: str
    status: str
    detail: str
    seconds: float = 0.0


def ask(name: str, backend: str, check: Check) -> Result:
    """The result of one check; no exception passes."""
    start = time.monotonic()
    try:
        status, detail = PASSED, check(backend)
    except NotHere as reason:
        status, detail = SKIPPED, str(reason)
    except Exception as error:
        traceback.print_exc()
        status, detail = FAILED, f"{type(error).__name__}: {error}"
    return Result(name, backend, status, detail, round(time.monotonic() - start, 1))


# --- the operations' tests on the GPU ---------------------------------------------------------------------


def read_report(path: Path) -> tuple[dict[str, int], list[str]]:
    """Numbers of tests by outcome, and what failed, from a JUnit report."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[outcome] += 1
        if outcome == "failed":
            failures.append(f"{case.get('classname')}::{case.get('name')}")
    return counts, failures


def run_tests(backend: str, seconds: float) -> str:
    """The op x backend x dtype x layout x size matrix and the exactness tests, in processes of their own."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"VQ_TEST_DEVICE": "cuda", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # What names another backend is not this one's; what names none concerns both.
        others = " or ".join(sorted({"cuda", "triton", "native", "reference"} - {backend}))
        chosen = ["-k", f"{backend} or not ({others})"]
        files = (*TESTS, *OWN_TESTS.get(backend, ()))
        command = [sys.executable, "-m", "pytest", *files, "-q", *chosen, f"--junitxml={report}"]
        command += ["-p", "no:cacheprovider", "--tb=short", "-o", "addopts="]
        if importlib.util.find_spec("pytest_timeout") is not None:
            command.append(f"--session-timeout={seconds:.0f}")
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadgroup"]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds + 30,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotHere(f"the tests did not end within {seconds + 30:.0f} seconds") from error
        if not report.exists():
            raise AssertionError(
                f"pytest ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        counts, failures = read_report(report)
    if failures:
        print(done.stdout[-6000:], file=sys.stderr)
    text = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
    assert not failures, f"{text}; {', '.join(failures[:6])}"
    assert counts["passed"], f"no test ran for {backend}: {text}"
    if done.returncode != 0:
        raise NotHere(f"{text}, then stopped after {seconds:.0f} seconds")
    return text


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


def write(results: list[Result], description: dict[str, Any], path: Path) -> None:
    """``<gpu>-check.json``: machine, versions, commit and date with every result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = sum(r.status == FAILED for r in results)
    content = {**description, "failed": failed, "results": [asdict(r) for r in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def run(
    backends: list[str],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    save: Callable[[list[Result]], object] = lambda results: None,
) -> list[Result]:
    """Every check for every backend; what no time is left for is skipped and says so.

    ``save`` gets all results so far after each of them, so that a run that is stopped leaves them behind.
    """
    end = clock() + seconds
    unavailable = available_backends()
    results = []
    for backend in backends:
        if (reason := unavailable[backend]) is not None:
            results.append(Result("available", backend, FAILED, reason))
    working = [b for b in backends if unavailable[b] is None]
    for i, backend in enumerate(working):
        share = (end - clock()) / (len(working) - i)  # the time of this backend, tests included
        stop = clock() + share

        def test(name: str, stop: float = stop) -> str:
            return run_tests(name, max(30.0, stop - clock() - 60.0))

        def sanitize(name: str, tool: str, stop: float = stop) -> str:
            return passes_sanitizer(tool, name, min(100.0, max(15.0, stop - clock())))

        questions: dict[str, Check] = {**CHECKS, "tests of the operations": test}
        questions |= {f"compute-sanitizer {tool}": partial(sanitize, tool=tool) for tool in SANITIZERS}
        for name, check in questions.items():
            print(f"{backend}: {name}", file=sys.stderr, flush=True)
            if clock() >= end:
                results.append(Result(name, backend, SKIPPED, "no time left"))
            else:
                results.append(ask(name, backend, check))
            save(results)
    return results


def main(arguments: list[str] | None = None) -> int:
    """0 when nothing failed, 1 when something did, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="default: both")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time to use, default %(default)s")
    parser.add_argument("--no-write", action="store_true", help="write no results file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and torch sees none on this machine.", file=sys.stderr)
        return 2
    description = describe("cuda")
    path = RESULTS / f"{machine_name('cuda')}-check.json"

    def save(found: list[Result]) -> None:
        if not options.no_write:
            write(found, description, path)

    results = run(options.backend or list(BACKENDS), options.seconds, save=save)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    print(table(results))
    save(results)
    if not options.no_write:
        print(f"\nwritten: {path}")
    return 1 if any(r.status == FAILED for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
