"""``make gpu-check`` as far as a machine without a GPU can try it: the table, the file, the exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cuda_host
import pytest
import torch

import vq_kernels as vq
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import models as gpu_models
from benchmarks.gpu.check import FAILED, PASSED, SKIPPED, NotHere, Result
from benchmarks.gpu.models import from_data_to_samples
from benchmarks.machine import describe
from vq_kernels.backends import QuantizeResult, register_backend
from vq_kernels.backends.cuda import CudaBackend


def test_without_a_gpu_it_says_so_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"gpu-check needs a CUDA GPU, [^.]*\.\n", said.err)


def _right(backend: str) -> str:
    return f"{backend} is right\nmore of it"


def _wrong(backend: str) -> str:
    raise AssertionError("3 of 5 indices differ")


def _absent(backend: str) -> str:
    raise NotHere("one GPU")


CHECKS = {"right": _right, "wrong": _wrong, "absent": _absent}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Checks of every outcome; the tests of the operations are noted, not run."""
    asked: list[str] = []

    def run_tests(backend: str, seconds: float) -> str:
        asked.append(f"{backend} {seconds:.0f}")
        return "7 passed"

    monkeypatch.setattr(gpu_check, "CHECKS", CHECKS)

    def sanitize(tool: str, backend: str, seconds: float) -> str:
        return f"{tool} of {backend}, {seconds:.0f} s"

    monkeypatch.setattr(gpu_check, "run_tests", run_tests)
    monkeypatch.setattr(gpu_check, "passes_sanitizer", sanitize)
    monkeypatch.setattr(gpu_check, "available_backends", lambda: {"cuda": None, "triton": "not installed"})
    return asked


def test_every_outcome_is_a_line(made_up: list[str]) -> None:
    results = gpu_check.run(["cuda", "triton"], 500.0, clock=lambda: 0.0)
    outcomes = [(r.check, r.backend, r.status, r.detail) for r in results]
    assert outcomes == [
        ("available", "triton", FAILED, "not installed"),
        ("right", "cuda", PASSED, "cuda is right\nmore of it"),
        ("wrong", "cuda", FAILED, "AssertionError: 3 of 5 indices differ"),
        ("absent", "cuda", SKIPPED, "one GPU"),
        ("tests of the operations", "cuda", PASSED, "7 passed"),
        ("compute-sanitizer memcheck", "cuda", PASSED, "memcheck of cuda, 100 s"),
        ("compute-sanitizer racecheck", "cuda", PASSED, "racecheck of cuda, 100 s"),
    ]
    assert made_up == ["cuda 440"], "the tests get the backend's time less a minute for what follows"


def test_no_check_begins_after_the_time(made_up: list[str]) -> None:
    ticks: Iterator[float] = iter(range(0, 10_000, 7))
    saved: list[int] = []
    results = gpu_check.run(
        ["cuda"], 30.0, clock=lambda: next(ticks), save=lambda found: saved.append(len(found))
    )
    assert [r.status for r in results] == [PASSED, FAILED] + [SKIPPED] * 4
    assert [r.detail for r in results[2:]] == ["no time left"] * 4
    assert saved[-1] == len(results), "whoever stops a run keeps what there is"
    assert saved == sorted(saved)


def test_table_is_aligned_and_short() -> None:
    results = [
        Result("a check", "cuda", PASSED, "fine\nsecond line", 1.25),
        Result("b", "triton", FAILED, 300 * "x"),
    ]
    lines = gpu_check.table(results).splitlines()
    assert lines[0].split() == ["check", "backend", "status", "s", "detail"]
    assert lines[1] == "a check  cuda     passed  1.2  fine"
    assert (
        len({line.index(word) for line, word in zip(lines, ("status", "passed", "FAILED"), strict=True)}) == 1
    )
    assert len(lines[2]) < 140


def test_the_file_says_where_and_what(tmp_path: Path) -> None:
    results = [Result("a", "cuda", PASSED, "x", 0.1), Result("b", "cuda", FAILED, "y\nz", 0.2)]
    path = tmp_path / "results" / "nvidia-h200-check.json"
    gpu_check.write(results, describe(), path)
    content = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "date"} <= content.keys()
    assert content["failed"] == 1
    assert content["results"][1] == {
        "check": "b",
        "backend": "cuda",
        "status": FAILED,
        "detail": "y\nz",
        "seconds": 0.2,
    }


def test_report_of_pytest_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_ops" name="a"/>'
        '<testcase classname="tests.test_ops" name="b"><failure/></testcase>'
        '<testcase classname="tests.test_ops" name="c"><skipped/></testcase>'
        '<testcase classname="tests.test_ops" name="d"><error/></testcase></testsuite></testsuites>'
    )
    counts, failures = gpu_check.read_report(report)
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert failures == ["tests.test_ops::b", "tests.test_ops::d"]


def test_the_tests_it_names_exist() -> None:
    assert all((gpu_check.ROOT / name).exists() for name in gpu_check.TESTS)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_what_names_no_backend_is_tested_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled layers, export and functorch name none."""
    commands: list[list[str]] = []

    def collect(command: list[str], **options: object) -> object:
        commands.append(command)
        return gpu_check.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(gpu_check.subprocess, "run", collect)
    with pytest.raises(AssertionError, match="pytest ended"):
        gpu_check.run_tests(backend, 10.0)
    other = {"cuda": "triton", "triton": "cuda"}[backend]
    (command,) = commands
    assert (
        command[command.index("-k") + 1]
        == f"{backend} or not ({' or '.join(sorted(('native', other, 'reference')))})"
    )
    assert ("tests/backends/test_triton.py" in command) == (backend == "triton")
    assert all((gpu_check.ROOT / name).exists() for name in command if name.startswith("tests/"))


def test_tests_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line for pytest is right: here on the CPU, with one small file."""
    monkeypatch.setattr(gpu_check, "TESTS", ("tests/backends/test_edge_cases.py",))
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None)
    real = gpu_check.subprocess.run

    def on_the_cpu(command: list[str], **options: object) -> object:
        options["env"] = {**options["env"], "VQ_TEST_DEVICE": "cpu"}  # type: ignore[dict-item]
        return real(command, **options)

    monkeypatch.setattr(gpu_check.subprocess, "run", on_the_cpu)
    assert re.match(r"\d+ passed", gpu_check.run_tests("reference", 200.0))


def test_a_machine_without_sanitizer_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks.shutil, "which", lambda name: None)
    with pytest.raises(NotHere, match="not installed"):
        gpu_checks.passes_sanitizer("memcheck", "cuda")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """The CUDA kernels on the host, in place of a GPU."""
    backend = cuda_host.load_backend()
    register_backend(backend)
    monkeypatch.setattr(gpu_checks, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_checks, "SIZES", ((300, 40, 70), (200, 5, 33)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return backend.name


def test_what_the_sanitizer_watches_calls_everything(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()
    for name in (
        "vector_quantize",
        "vector_quantize_backward",
        "ema_update_",
        "code_statistics",
        "gather_codes",
    ):
        real = getattr(CudaBackend, name)

        def note(
            *args: object, name: str = name, real: Callable[..., object] = real, **kwargs: object
        ) -> object:
            called.add(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(CudaBackend, name, note)
    gpu_checks.call_everything(here)
    assert len(called) == 5


def test_a_right_backend_agrees_and_a_wrong_one_does_not(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_checks.agrees_with_reference(here) == "1500 rows, every index equal"
    real = CudaBackend.vector_quantize

    def off_by_one(self: CudaBackend, *args: object) -> QuantizeResult:
        result = real(self, *args)  # type: ignore[arg-type]
        result.indices[0, 7] += 1
        return result

    monkeypatch.setattr(CudaBackend, "vector_quantize", off_by_one)
    with pytest.raises(AssertionError, match="1 of 300 indices differ"):
        gpu_checks.agrees_with_reference(here)


def test_models_go_from_data_to_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.match(r"two runs equal, MSE 0\.0\d+ on cpu", from_data_to_samples("native", "cpu"))
    seen = {"weights": [b"1"], "codes": [[3]], "mse": 0.02}
    for changes, on_the_cpu, message in (
        ({"weights": [b"2"]}, 0.02, "two trainings of one seed differ"),
        ({"codes": [[4]]}, 0.02, "two samplings of one seed differ"),
        ({}, 0.03, "MSE 0.020000 on cpu, 0.030000 on the CPU"),
        ({}, 0.1, "MSE 0.1000 after three epochs"),
    ):
        runs = iter([seen, seen | changes])
        monkeypatch.setattr(gpu_models, "_run", lambda *arguments, runs=runs: next(runs))
        monkeypatch.setattr(gpu_models, "_evaluate", lambda *arguments, mse=on_the_cpu: mse)
        with pytest.raises(AssertionError, match=message):
            from_data_to_samples("native", "cpu")


def test_a_training_step_gives_results_and_a_gradient(here: str) -> None:
    layer = vq.FusedVectorQuantizer(8, 16, backend=here)
    x = torch.randn(50, 8, requires_grad=True)
    before = layer.codebook.clone()
    quantized, indices, loss, grad = gpu_checks.training_step(layer, x, torch.ones(50, 8))
    assert quantized.shape == grad.shape == x.shape
    assert indices.shape == (50,)
    assert loss.shape == ()
    assert not torch.equal(layer.codebook, before), "the codebook follows"


def test_a_driver_older_than_the_extensions_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before the first call, so that automatic choice takes another backend."""

    def capability(device: int) -> tuple[int, int]:
        raise RuntimeError("capability: CUDA driver version is insufficient for CUDA runtime version")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    old = ModuleType("old")
    old.capability = capability  # type: ignore[attr-defined]
    reason = CudaBackend(old).unavailable_reason()
    assert reason is not None
    assert "driver version is insufficient" in reason
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert CudaBackend(old).unavailable_reason() is None, "asking does not start CUDA"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    old.capability = lambda device: (9, 0)  # type: ignore[attr-defined]
    assert CudaBackend(old).unavailable_reason() is None
