"""The programs that measure: what they run, what they leave out, and what they write."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bench, compare, machine, measure, scaling
from benchmarks.agreement import Disagreement
from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import equal_codes, problems
from benchmarks.gpu.target import Target
from benchmarks.measure import Budget
from benchmarks.peers import Peer, chunked_matmul, our_search
from benchmarks.roofline import Roofs
from benchmarks.work import Case

SMALL = Case(300, 16, 40)


def test_default_pytest_collects_no_benchmarks():
    settings = tomllib.loads((machine.ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]


SMALL_WORK = (("search", SMALL), ("step", Case(64, 8, 16)))


@pytest.fixture
def small_bench(tmp_path: Path, monkeypatch) -> Path:
    """The bench with small problems and roofs that cost nothing; the folder of its results."""
    monkeypatch.setattr(bench, "WORK", SMALL_WORK)
    monkeypatch.setattr(bench, "BUDGET", Budget(seconds=0.0, sample_s=0.0, min_pairs=1, max_pairs=1))
    monkeypatch.setattr(bench.cliffs, "table", lambda budget: iter([("one long code", 1.5)]))
    monkeypatch.setattr(bench, "measure_roofs", lambda device: Roofs(1e9, 1e9, 1e9, int8=1e9))
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


def test_a_text_that_matches_no_row_is_an_error_that_lists_them(small_bench: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--only", "D=17"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert (
        "--only is 'D=17'; accepted: a part of one of 'search N=300 D=16 K=40', 'step N=64 D=8 K=16'" in said
    )
    assert list(small_bench.iterdir()) == []


def test_bench_leaves_out_only_what_compiles(small_bench: Path, monkeypatch, capsys):
    """However late it is, everything else is measured; the file has rows, steal and spread."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "ESSENTIAL_S", 0.0)
    assert bench.main(["--no-memory"]) == 0
    (path,) = small_bench.glob("*.json")
    results = json.loads(path.read_text())
    reasons = {row["contender"]: row["not_measured"] for row in results["rows"]}
    assert {name for name, reason in reasons.items() if reason} == {n for n in reasons if "compiled" in n}
    assert "no time left" in reasons["compiled cdist"]
    assert results["steal"] is None or 0 <= results["steal"] <= 1
    assert results["spread"] == 0.0, "one pair has no spread"
    shown = capsys.readouterr().out
    assert "compiled cdist                      not measured: no time left" in shown


def test_bench_takes_one_row(small_bench: Path, capsys):
    assert bench.main(["--only", "step", "--no-memory", "--no-compile", "--no-write"]) == 0
    shown = capsys.readouterr().out
    assert "layer, forward + backward + EMA: N=64 D=8 K=16" in shown
    assert "search:" not in shown
    assert list(small_bench.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_gpu_bench_without_a_gpu_says_so_and_exits_2(capsys):
    assert gpu_bench.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_gpu_bench_goes_on_after_a_failure_and_stops_in_time():
    tiny = problems.TINY._replace(searches=(Case(64, 4, 8), Case(64, 0, 8), SMALL))
    run = gpu_bench.GpuBench(Target("cpu"), seconds=1e9, compiled=False)
    run.problems = tiny
    saved: list[int] = []
    run.save = lambda: saved.append(len(run.results({})["rows"]))
    run.run(("search",))
    assert saved[:3] == [len(run.rows) // 2] * 2 + [len(run.rows)], "after every part"
    assert [f["what"] for f in run.failures] == ["search N=64 D=0 K=8"]
    measured = [row.contender for row in run.rows if row.spread is not None]
    assert measured.count("vq_kernels exact") == 2
    compiled = {row.reason for row in run.rows if "compiled" in row.contender}
    assert compiled == {"left out by --no-compile"}
    late = gpu_bench.GpuBench(Target("cpu"), seconds=1e-9)
    late.problems = tiny._replace(searches=(SMALL,))
    late.run(("search",))
    assert late.rows == []
    assert "no time left" in late.failures[0]["error"]


def test_gpu_bench_keeps_what_another_call_measured():
    first = gpu_bench.GpuBench(Target("cpu"), seconds=1e9, compiled=False)
    first.run(("search", "equal_codes"))
    assert [r["codes"] for r in first.parts["equal_codes"]] == ["zeros", "9 copies"]
    earlier = first.results({})
    second = gpu_bench.GpuBench(Target("cpu"), seconds=1e9, compiled=False, earlier=earlier)
    second.run(("layer",))
    together = second.results({})
    assert [r["work"] for r in together["rows"]] == ["search"] * len(first.rows) + ["step"] * len(second.rows)
    assert together["equal_codes"] == first.parts["equal_codes"]


def test_equal_codes_that_are_not_the_first_are_refused(monkeypatch):
    case = Case(40, 3, 18)
    right = equal_codes.measure(case, "cpu", None, gpu_bench.TINY_BUDGET)
    assert [r["codes"] for r in right] == ["zeros", "9 copies"]

    def last(x, codebook, *, backend=None):
        return lambda: len(codebook) - 1 - our_search(x, codebook.flip(0))()

    monkeypatch.setattr(equal_codes, "our_search", last)
    with pytest.raises(Disagreement, match="40 rows did not get the first of equal codes"):
        equal_codes.measure(case, "cpu", None, gpu_bench.TINY_BUDGET)


def test_deadline_leaves_out_compilers_first_and_ours_last():
    now = [0.0]
    deadline = measure.Deadline(100.0, lambda: now[0])
    peers = ("vq_kernels exact", "flash-kmeans", "compiled cdist")
    for now[0], begins in (
        (50.0, [True, True, True]),
        (70.0, [True, True, False]),
        (90.0, [True, False, False]),
    ):
        assert [deadline.leave_out(who) is None for who in peers] == begins
    now[0] = 0.0
    short = measure.Deadline(40.0, lambda: now[0])
    now[0] = 15.0
    assert short.leave_out("compiled cdist") == short.spent, "compiling takes longer than what is left"


def test_what_compiles_is_measured_after_all_else(monkeypatch):
    begun: list[str] = []

    def peer(name):
        def prepare(x, codebook):
            begun.append(name)
            return our_search(x, codebook)

        return Peer(name, prepare)

    monkeypatch.setattr(compare, "search_peers", lambda device, dtype: [peer("compiled one"), peer("plain")])
    options = compare.Options(budget=Budget(seconds=0.0, sample_s=0.0, min_pairs=1, max_pairs=1))
    comparison = compare.compare_search(SMALL, options)
    reasons = {row.contender: row.reason for row in comparison.rows}
    assert begun == ["plain"]
    assert reasons["plain"] is None
    assert reasons["compiled one"].startswith("not begun")
    comparison.finish()
    assert begun == ["plain", "compiled one"]
    assert all(row.spread is not None for row in comparison.rows)


def test_a_failing_peer_is_a_reason_and_ours_raises(monkeypatch):
    def wrong(x, codebook):
        return lambda: torch.zeros(len(x), dtype=torch.int64)

    peers = [Peer("wrong", wrong), Peer("right", chunked_matmul), Peer("absent", wrong, "not installed")]
    monkeypatch.setattr(compare, "search_peers", lambda device, dtype: peers)
    options = compare.Options(budget=Budget(seconds=0.0, sample_s=0.0, min_pairs=1, max_pairs=1))
    rows = {row.contender: row for row in compare.compare_search(SMALL, options).rows}
    assert rows["wrong"].reason.startswith("Disagreement")
    assert rows["wrong"].spread is None
    assert rows["right"].ratio is not None
    assert rows["absent"].reason == "not installed"

    for bad in ("exact", "fast"):

        def one_is_wrong(x, codebook, *, precision="exact", backend=None, bad=bad):
            return wrong(x, codebook) if precision == bad else our_search(x, codebook, precision=precision)

        monkeypatch.setattr(compare, "our_search", one_is_wrong)
        with pytest.raises(Disagreement):
            compare.compare_search(SMALL, options)

    rows = compare.compare_search(SMALL, replace(options, keep_going=True)).rows
    reasons = {row.contender: row.reason for row in rows if row.is_ours}
    assert reasons["vq_kernels fast"].startswith("FAILED: Disagreement")
    assert reasons["vq_kernels high"] is None
    failures = gpu_bench.ours_that_failed(rows)
    assert [f["what"] for f in failures] == [f"search {SMALL.shape}, vq_kernels fast"]


def test_scaling_curves_are_measured_and_drawn(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(scaling, "contenders", lambda device: ["vq_kernels reference", "torch.cdist"])
    problems = {"N": [Case(32, 4, 8), Case(64, 4, 8)], "K": [Case(32, 4, 16)], "D": [Case(32, 2, 8)]}
    points = scaling.measure("cpu", problems=problems)
    assert len(points) == 8
    assert {p["contender"] for p in points} == {"vq_kernels reference", "torch.cdist"}
    result = {"machine": {"name": "some-cpu"}, "date": "2030-01-01", "scaling": points}
    scaling.plot([result], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="scaling"):
        scaling.plot([{"machine": {}}], tmp_path / "none.png")
