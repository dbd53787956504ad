"""The exactness part: its cases catch wrong kernels, and a process that dies is named with its case."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vq_kernels as vq
from benchmarks.gpu import exactness, precompile
from benchmarks.gpu.cases import DIMS, LAYOUTS, Case, cases, check_case, make_inputs
from benchmarks.gpu.faults import FATAL, is_fatal
from benchmarks.gpu.target import Target

HERE, GPU = Target("cpu"), Target("cuda")


def test_the_cases_are_those_of_the_plan() -> None:
    for d in DIMS:
        quantize = [c for c in cases(d, GPU) if c.operation == "quantize"]
        assert {(c.n, c.k) for c in quantize} == {(1, 1), (63, 129), (1134, 777), (40_011, 6200)}
        assert {c.layout for c in quantize} == set(LAYOUTS)
        assert len({(c.x_dtype, c.codebook_dtype) for c in quantize}) == 5
        assert {c.precision for c in cases(d, GPU)} == {"exact", "high", "fast"}
        assert cases(d, GPU)[0].precision == "exact"
    assert {1, 8, 64, 100, 128, 200, 256, 512} == set(DIMS)


def test_what_is_compiled_ahead_serves_every_case() -> None:
    ahead = {case.compiles for case in precompile.distinct(DIMS, GPU)}
    assert ahead == {case.compiles for d in DIMS for case in cases(d, GPU)}
    assert len(ahead) == len(precompile.distinct(DIMS, GPU))
    first = precompile.distinct(DIMS, GPU)[: len(DIMS)]
    assert [c.d for c in first] == list(DIMS), "all D of the most telling kind come first"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_what_they_say(layout: str) -> None:
    x, codebook, _ = make_inputs(Case("quantize", torch.float32, torch.float32, 8, 21, 5, layout), HERE)
    assert codebook.shape == (5, 8)
    assert x.shape == ((3, 8, 7) if layout == "first" else (21, 8))
    if layout == "odd slice":
        assert x.data_ptr() % 16 != 0
        assert x.stride() == (11, 1)


# --- teeth ----------------------------------------------------------------------------------------


def change(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable) -> None:
    """Spoil what a public function returns for every backend but the reference."""
    real = getattr(vq, name)

    def wrong(*arguments, backend=None, **options):
        result = real(*arguments, backend="reference", **options)
        return result if backend == "reference" else spoil(result)

    monkeypatch.setattr(vq, name, wrong)


def _case(operation: str, **options) -> Case:
    return Case(operation, torch.float32, torch.float32, 8, 63, 31, **options)


def _off_by_one(result):
    result.indices[5] = (result.indices[5] + 1) % 31
    return result


SPOILT = {
    "index": ("vector_quantize", _case("quantize"), _off_by_one, "1 of 63 indices differ, row 5: "),
    "row": (
        "vector_quantize",
        _case("quantize", layout="first"),
        lambda r: r._replace(quantized=r.quantized + 1e-7),
        "quantized rows differ",
    ),
    "NaN row": (
        "vector_quantize",
        _case("quantize", data="NaN rows"),
        lambda r: r._replace(quantized=r.quantized.nan_to_num(nan=0.0)),
        "quantized rows differ",
    ),
    "count": (
        "vector_quantize",
        _case("quantize", data="masked"),
        lambda r: r._replace(counts=r.counts + 1),
        "counts differ",
    ),
    "loss": ("vector_quantize", _case("quantize"), lambda r: r._replace(loss=r.loss * 1.001), "not close"),
    "gradient": (
        "vector_quantize",
        _case("gradient"),
        lambda r: r._replace(quantized=r.quantized * 1.001),
        "straight_through: ",
    ),
    "search": ("nearest_code", _case("search", precision="fast"), lambda r: (r + 1) % 31, "no tie"),
    "equal codes": (
        "nearest_code",
        Case("search", torch.float32, torch.float32, 8, 63, 30, precision="high", data="equal codes"),
        lambda r: r + 15,
        "63 of 63 rows chose the later of two equal codes",
    ),
    "gather": ("gather_codes", _case("statistics"), lambda r: r * 1.001, "gathered codes differ"),
    "statistics": ("code_statistics", _case("statistics"), lambda r: (r[0] + 1, r[1]), "counts differ"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_wrong_result_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, case, spoil, message = SPOILT[name]
    check_case(case, "reference", HERE)
    change(monkeypatch, function, spoil)
    with pytest.raises(AssertionError, match=message):
        check_case(case, "native", HERE)


def test_ema_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = vq.ema_update_

    def wrong(codebook, *arguments, backend=None, **options):
        real(codebook, *arguments, backend="reference", **options)
        if backend != "reference":
            codebook *= 1.001

    monkeypatch.setattr(vq, "ema_update_", wrong)
    with pytest.raises(AssertionError, match="not close"):
        check_case(_case("statistics"), "native", HERE)


# --- processes ------------------------------------------------------------------------------------


def test_which_errors_are_fatal() -> None:
    assert is_fatal("CUDA error: an illegal memory access was encountered")
    assert is_fatal(RuntimeError("Triton Error [CUDA]: misaligned address"))
    assert not is_fatal("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert not is_fatal("3 of 63 indices differ")


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs the part with processes made of a few lines of Python each, by (backend, D)."""

    def run(
        scripts: dict[tuple[str, int], str],
        dims: tuple[int, ...] = (8,),
        seconds: float = 250.0,
        process_s: float = 200.0,
    ):
        monkeypatch.setattr(
            exactness.Exactness,
            "_command",
            lambda self, backend, d: [sys.executable, "-c", scripts.get((backend, d), ALL_RIGHT)],
        )
        whole = exactness.Exactness(HERE, tmp_path, process_s=process_s)
        whole.run(dims, 2, seconds)
        return whole, {(o.backend, o.d): o for o in whole.outcomes}

    return run


COUNT = len(cases(8, HERE))
ALL_RIGHT = f"""
import json
for i in range({COUNT}):
    print(json.dumps({{"begun": i}}))
    print(json.dumps({{"passed": i}}))
"""


def test_a_wrong_case_is_listed(scripted) -> None:
    line = json.dumps({"failed": 2, "case": "some case", "error": "AssertionError: 3 of 5 differ\nmore"})
    whole, outcomes = scripted({("cuda", 8): f"print({line!r})"})
    assert outcomes["triton", 8].is_right
    wrong = outcomes["cuda", 8]
    assert not wrong.is_right
    assert wrong.failures == [{"case": "some case", "error": "AssertionError: 3 of 5 differ\nmore"}]
    assert "D=8: some case: AssertionError: 3 of 5 differ" in whole.summary()
    content = json.loads(whole.path.read_text())
    assert {"machine", "versions", "commit", "date"} <= content.keys()
    assert len(content["outcomes"]) == 2


@pytest.mark.parametrize(
    "end", [f"import sys; sys.exit({FATAL})", "import os; os.abort()"], ids=["fault", "crash"]
)
def test_a_fatal_fault_ends_its_backend_and_is_found_again(
    end: str, scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool is given the case's index; the other processes of that backend end or never begin."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\necho "========= Invalid __global__ read in $*"; exit 9\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fault = f"""
import json, pathlib, time
while not pathlib.Path({str(tmp_path / "begun")!r}).exists():
    time.sleep(0.01)
print(json.dumps({{"begun": 4}}), flush=True)
{end}
"""
    endless = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(250)"
    whole, outcomes = scripted({("triton", 8): fault, ("triton", 64): endless}, dims=(8, 64, 1))
    case = cases(8, HERE)[4]
    assert f"a fatal fault in {case}" in outcomes["triton", 8].ended
    assert outcomes["triton", 64].ended.startswith("ended: a fatal fault")
    assert outcomes["triton", 1].ended.startswith("not begun: a fatal fault")
    assert all(outcomes["cuda", d].is_right for d in (8, 64, 1)), "the other backend goes on"
    (found,) = whole.faults
    assert "Invalid __global__ read in --tool memcheck" in found["memcheck"]
    assert found["memcheck"].rstrip().endswith("--only 4")


def test_a_process_that_does_not_end_is_named_with_its_case(
    scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time passes once the case has begun, however long Python takes to start."""
    begun, limits = tmp_path / "begun", []

    class OnceBegun(threading.Timer):
        def run(self) -> None:
            limits.append(self.interval)
            while not self.finished.wait(0.01):
                if begun.exists():
                    self.function()
                    return

    monkeypatch.setattr(exactness, "threading", SimpleNamespace(**vars(threading) | {"Timer": OnceBegun}))
    slow = f"""
import json, pathlib, time
print(json.dumps({{"begun": 3}}), flush=True)
pathlib.Path({str(begun)!r}).touch()
time.sleep(250)
"""
    _, outcomes = scripted({("cuda", 8): slow}, process_s=5.0)
    assert limits == [5.0, 5.0]
    assert outcomes["cuda", 8].ended == f"did not end within 5 s, in {cases(8, HERE)[3]}"
    assert outcomes["cuda", 8].fatal_case is None


def test_nothing_begins_when_the_time_is_over(scripted) -> None:
    _, outcomes = scripted({}, seconds=0.0)
    assert {o.ended for o in outcomes.values()} == {"not begun: no time left"}


def test_a_process_ends_at_a_fatal_fault(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def faulty(case: Case, backend: str, target: Target) -> None:
        if case.operation == "gradient":
            raise RuntimeError("CUDA error: misaligned address")
        assert case.layout == "first", "wrong"

    monkeypatch.setattr(exactness, "check_case", faulty)
    assert exactness.run_cases("triton", 8, HERE) == FATAL
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [next(kind for kind in ("begun", "passed", "failed") if kind in line) for line in lines]
    assert kinds[:4] == ["begun", "passed", "begun", "failed"]
    assert lines[-1]["error"] == "RuntimeError: CUDA error: misaligned address"
    assert exactness.run_cases("triton", 8, HERE, only=0) == 0
