"""Tests of the operations (op x backend x dtype x layout x size) and of their callers, on the GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..machine import ROOT
from .faults import NotHere, run_limited
from .target import BACKENDS, Target

_OPERATORS = (
    *("operations", "gradients", "registration"),
    *("prepared", "lazy_tensors", "codebook_gradient", "registry"),
)
TESTS = (
    *(f"tests/operators/test_{name}.py" for name in _OPERATORS),
    *(f"tests/backends/test_{name}.py" for name in ("exactness", "edge_cases")),
    "tests/test_properties.py",
    *("tests/quantizers", "tests/clustering", "tests/models/priors"),
)
OWN_TESTS = {
    "triton": tuple(
        f"tests/backends/test_triton{name}.py"
        for name in ("", "_launch", "_search", "_certificate", "_hopper", "_direct", "_few", "_packed")
    ),
    "cuda": (),
}
REHEARSED = ("tests/operators/test_operations.py", "gather")  # a file, and what of it is interpreted quickly
WORKERS = 14


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


_ENDED = re.compile(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (\S+)", re.MULTILINE)


def read_progress(output: str) -> tuple[dict[str, int], list[str]]:
    """The same from what pytest's workers printed before they were stopped."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for word, name in _ENDED.findall(output):
        outcome = {"PASSED": "passed", "SKIPPED": "skipped"}.get(word, "failed")
        counts[outcome] += 1
        if outcome == "failed":
            failures.append(name)
    return counts, failures


def test_command(backends: Sequence[str], report: Path, seconds: float, target: Target) -> list[str]:
    """How pytest is called: what names another backend is left out, what names none concerns all."""
    others = " or ".join(sorted({*BACKENDS, "native", "reference"} - set(backends)))
    chosen = f"{' or '.join(backends)} or not ({others})"
    own = [path for backend in backends for path in OWN_TESTS.get(backend, ())]
    files = [*TESTS, *own]
    if target.is_rehearsal:
        files, chosen = [REHEARSED[0]], f"({chosen}) and {REHEARSED[1]}"
    command = [sys.executable, "-m", "pytest", *files, "-v", "-k", chosen, f"--junitxml={report}"]
    command += [
        "-p",
        "no:cacheprovider",
        "-p",
        "benchmarks.gpu.pytest_faults",
        "--tb=short",
        "-o",
        "addopts=",
    ]
    command += ["--import-mode=importlib"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command.append(f"--session-timeout={seconds:.0f}")
    if importlib.util.find_spec("xdist") is not None:
        workers = max(1, min(target.choose(WORKERS, 1), os.cpu_count() or 1))
        command += ["-n", str(workers), "--dist", "load", "--max-worker-restart", str(workers)]
    return command


def run_tests(backends: Sequence[str], seconds: float, target: Target, report: Path | None = None) -> str:
    """Run them in processes of their own; ``report`` keeps pytest's JUnit file.

    Raises:
        AssertionError: a test failed, or none ran.
        NotHere: they did not end in time.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"VQ_TEST_DEVICE": target.device, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        report = report or Path(folder) / "report.xml"
        command = test_command(backends, report, seconds, target)
        status, output = run_limited(command, seconds + 30, environment)
        if status is None:  # one that compiles does not hear of a session's end
            counts, failures = read_progress(output)
        elif report.exists():
            counts, failures = read_report(report)
        else:
            raise AssertionError(f"pytest ended with {status}:\n{output[-3000:]}")
    if failures:
        print(output[-6000:], file=sys.stderr)
    if status is None and not any(counts.values()):
        raise NotHere(f"no test ended within {seconds + 30:.0f} seconds")
    text = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
    assert not failures, f"{text}; {', '.join(failures[:6])}"
    assert counts["passed"], f"no test ran for {', '.join(backends)}: {text}"
    if status != 0:
        raise NotHere(f"{text}, then stopped after {seconds:.0f} seconds")
    return text
