"""The operations' tests and compute-sanitizer as ``gpu-check`` runs them, on a machine without a GPU."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import faults, operation_tests, sanitized
from benchmarks.gpu.faults import NotHere
from benchmarks.gpu.target import Target
from benchmarks.machine import ROOT

HERE = Target("cpu")


def test_report_of_pytest_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_ops" name="a"/>'
        '<testcase classname="tests.test_ops" name="b"><failure/></testcase>'
        '<testcase classname="tests.test_ops" name="c"><skipped/></testcase>'
        '<testcase classname="tests.test_ops" name="d"><error/></testcase></testsuite></testsuites>'
    )
    counts, failures = operation_tests.read_report(report)
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert failures == ["tests.test_ops::b", "tests.test_ops::d"]


def test_the_tests_it_names_exist() -> None:
    assert all((ROOT / name).exists() for name in (*operation_tests.TESTS, operation_tests.REHEARSED[0]))


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_what_names_no_backend_is_tested_too(backend: str) -> None:
    """Compiled layers, export and functorch name none."""
    command = operation_tests.test_command([backend], Path("report.xml"), 10.0, Target("cuda"))
    other = {"cuda": "triton", "triton": "cuda"}[backend]
    chosen = command[command.index("-k") + 1]
    assert chosen == f"{backend} or not ({' or '.join(sorted(('native', other, 'reference')))})"
    assert ("tests/backends/test_triton.py" in command) == (backend == "triton")
    assert all((ROOT / name).exists() for name in command if name.startswith("tests/"))


def test_tests_really_run(tmp_path: Path) -> None:
    """The command line for pytest is right: here on the CPU, with a few small tests."""
    report = tmp_path / "tests.xml"
    assert re.match(r"\d+ passed", operation_tests.run_tests(["reference"], 600.0, HERE, report))
    counts, failures = operation_tests.read_report(report)
    assert counts["passed"] > 0
    assert failures == []


def test_what_ended_before_the_tests_were_stopped_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test_made_up.py").write_text(
        "import os, pytest, signal\n"
        "def test_passes():\n"
        "    pass\n"
        "def test_fails():\n"
        "    assert False\n"
        "def test_is_skipped():\n"
        "    pytest.skip('here')\n"
        "def test_has_no_fixture(absent):\n"
        "    pass\n"
        "def test_during_which_they_are_stopped():\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-v", "-n", "1", "-p", "no:cacheprovider"]
    status, output = faults.run_limited([*command, f"--rootdir={tmp_path}"], 600.0)
    counts, failures = operation_tests.read_progress(output)
    assert status == -signal.SIGKILL
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}, output
    assert [name.rpartition("::")[2] for name in failures] == ["test_fails", "test_has_no_fixture"]


def test_where_no_test_ended_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_tests, "run_limited", lambda *call: (None, "collecting"))
    with pytest.raises(NotHere, match="no test ended within 31 seconds"):
        operation_tests.run_tests(["cuda"], 1.0, Target("cuda"))


def test_a_worker_that_meets_a_fatal_fault_ends_and_another_goes_on(tmp_path: Path) -> None:
    (tmp_path / "test_made_up.py").write_text(
        "import os, pytest\n"
        "def test_fault():\n"
        "    raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_after(n):\n"
        "    pass\n"
    )
    report = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-q", f"--junitxml={report}", "-n", "1"]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.pytest_faults", "--max-worker-restart", "2"]
    command += [f"--rootdir={tmp_path}"]
    status, output = faults.run_limited(command, 600.0)
    counts, failures = operation_tests.read_report(report)
    assert status == 1
    assert "fatal fault in test_made_up.py::test_fault" in output
    assert counts == {"passed": 3, "failed": 1, "skipped": 0}, output
    assert [name.rpartition("::")[2] for name in failures] == ["test_fault"]


def test_a_machine_without_sanitizer_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults.shutil, "which", lambda name: None)
    with pytest.raises(NotHere, match="not installed"):
        sanitized.passes_sanitizer("memcheck", "cuda", Target("cuda"))


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", "5 programs: ERROR SUMMARY: 0 errors"),
        ("echo '========= ERROR SUMMARY: 2 errors'; exit 9", AssertionError("ERROR SUMMARY: 2 errors")),
        ("echo '========= Device not supported'; exit 1", NotHere("Device not supported")),
        ("sleep 60", NotHere("did not end within 1 seconds")),
    ],
    ids=["right", "wrong", "absent", "slow"],
)
def test_what_the_sanitizer_says(
    script: str, outcome: str | Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if isinstance(outcome, str):
        assert sanitized.passes_sanitizer("memcheck", "cuda", Target("cuda")) == outcome
        return
    with pytest.raises(type(outcome), match=str(outcome)):
        sanitized.passes_sanitizer("memcheck", "cuda", Target("cuda"), seconds=1.0)
