"""``make gpu-check`` as far as a machine without a GPU can try it: the table, the file, the exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vq_kernels as vq
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import models as gpu_models
from benchmarks.gpu import sanitized
from benchmarks.gpu.check import FAILED, PASSED, SKIPPED, Result
from benchmarks.gpu.faults import NotHere
from benchmarks.gpu.models import from_data_to_samples
from benchmarks.gpu.target import Target
from benchmarks.machine import describe
from vq_kernels.backends import QuantizeResult
from vq_kernels.backends.cuda import CudaBackend


def test_without_a_gpu_it_says_so_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"gpu-check needs a CUDA GPU, [^.]*\.\n", said.err)


HERE = Target("cpu")


def _right(backend: str, target: Target) -> str:
    return f"{backend} is right\nmore of it"


def _wrong(backend: str, target: Target) -> str:
    raise AssertionError("3 of 5 indices differ")


def _absent(backend: str, target: Target) -> str:
    raise NotHere("one GPU")


CHECKS = {"results": {"right": _right}, "streams": {"wrong": _wrong, "absent": _absent}}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Checks of every outcome; the tests of the operations are noted, not run."""
    asked: list[str] = []

    def run_tests(backends: list[str], seconds: float, target: Target, report: Path | None) -> str:
        asked.append(f"{' '.join(backends)} {seconds:.0f}")
        return "7 passed"

    def sanitize(tool: str, backend: str, target: Target, seconds: float) -> str:
        return f"{tool} of {backend}, {seconds:.0f} s"

    monkeypatch.setattr(gpu_check, "CHECKS", CHECKS)
    monkeypatch.setattr(gpu_check, "run_tests", run_tests)
    monkeypatch.setattr(gpu_check, "passes_sanitizer", sanitize)
    monkeypatch.setattr(gpu_check, "available_backends", lambda: {"cuda": None, "triton": "not installed"})
    monkeypatch.setattr(Target, "backend", lambda self, name: name)
    return asked


def test_every_outcome_is_a_line(made_up: list[str]) -> None:
    run = gpu_check.Run(Target("cuda"), 500.0, clock=lambda: 0.0)
    results = run.backends(["cuda", "triton"])
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
    run = gpu_check.Run(
        HERE,
        30.0,
        gpu_check.PARTS[:-1],
        clock=lambda: next(ticks),
        save=lambda results: saved.append(len(results)),
    )
    results = run.backends(["cuda"])
    assert [r.status for r in results] == [PASSED, FAILED, SKIPPED, SKIPPED]
    assert [r.detail for r in results[2:]] == ["no time left"] * 2
    assert saved == [1, 2, 3, 4], "whoever stops a run keeps what there is"


def test_some_parts_can_be_asked_alone(made_up: list[str]) -> None:
    assert [r.check for r in gpu_check.Run(HERE, 1e9, ("results",)).backends(["cuda"])] == ["right"]
    results = gpu_check.Run(HERE, 100.0, ("tests",), clock=lambda: 0.0).tests_together(["triton", "cuda"])
    assert [(r.check, r.backend) for r in results] == [("tests of the operations", "triton and cuda")]
    assert made_up == ["triton cuda 100"]


def test_after_a_fatal_fault_the_process_asks_nothing_more(
    made_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(backend: str, target: Target) -> str:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(CHECKS["results"], "right", faulty)
    results = gpu_check.Run(HERE, 1e9, ("results", "streams", "tests")).backends(["cuda"])
    assert [r.status for r in results] == [FAILED, SKIPPED, SKIPPED, PASSED]
    assert results[1].detail == "not asked after a fatal fault in right, cuda"


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


def test_calls_of_one_session_share_a_file(tmp_path: Path) -> None:
    """Each keeps what the others wrote, and writes its own results anew."""
    path = tmp_path / "check.json"
    first, second = Result("a", "cuda", FAILED, "x"), Result("b", "triton", PASSED, "y")
    gpu_check.write([first], {}, path, keep=True)
    gpu_check.write([second], {}, path, keep=True)
    first.status = PASSED
    gpu_check.write([first], {}, path, keep=True)
    content = json.loads(path.read_text())
    assert [(r["check"], r["status"]) for r in content["results"]] == [("b", PASSED), ("a", PASSED)]
    assert content["failed"] == 0
    gpu_check.write([first], {}, path)
    assert len(json.loads(path.read_text())["results"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["check.json"]


@pytest.fixture
def here() -> str:
    """The CUDA kernels on the host, in place of a GPU."""
    return HERE.backend("cuda")


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
    sanitized.call_everything(here, 3, torch.float32, HERE)
    assert len(called) == 5


def test_a_right_backend_agrees_and_a_wrong_one_does_not(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_checks.agrees_with_reference(here, HERE) == "140 rows, every index equal"
    real = CudaBackend.vector_quantize

    def off_by_one(self: CudaBackend, *args: object) -> QuantizeResult:
        result = real(self, *args)  # type: ignore[arg-type]
        result.indices[0, 7] += 1
        return result

    monkeypatch.setattr(CudaBackend, "vector_quantize", off_by_one)
    with pytest.raises(AssertionError, match="1 of 70 indices differ"):
        gpu_checks.agrees_with_reference(here, HERE)


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
