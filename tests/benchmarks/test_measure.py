"""The measuring code itself: a wrong result is caught, a ratio is right, memory is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import machine, measure, report
from benchmarks.agreement import Disagreement, check_against_float64, check_close, check_indices
from benchmarks.measure import Budget, Spread, WallTimer, measure_pairs
from benchmarks.memory import Probe, measure_probes, peak_beyond_outputs
from benchmarks.peers import cdist_argmin, our_search
from benchmarks.roofline import Roofs, first_pass_unit, lowest_time, matmul_rate, register_rate
from benchmarks.work import Case, make_inputs
from vq_kernels.backends import native

SMALL = Case(300, 16, 40)


# --- agreement ------------------------------------------------------------------------------------


def test_a_wrong_index_is_caught():
    x, codebook = make_inputs(SMALL)
    indices = cdist_argmin(x, codebook)()
    assert check_indices(x, codebook, indices, indices) == 0
    wrong = indices.clone()
    wrong[7] = (wrong[7] + 1) % SMALL.k
    with pytest.raises(Disagreement, match=r"1 rows, first 7"):
        check_indices(x, codebook, indices, wrong)
    with pytest.raises(Disagreement, match="ours is farther"):
        check_indices(x, codebook, wrong, indices)
    with pytest.raises(Disagreement, match="not the nearest"):
        check_against_float64(x, codebook, wrong, rows=SMALL.n)
    check_against_float64(x, codebook, indices, rows=SMALL.n)


def test_a_tie_is_no_disagreement_and_is_counted():
    x, codebook = make_inputs(SMALL)
    codebook[1] = codebook[0]
    x[:5] = codebook[0] + 0.01
    indices = cdist_argmin(x, codebook)()
    assert (indices[:5] == 0).all()
    other = indices.clone()
    other[:5] = 1
    assert check_indices(x, codebook, indices, other) == 5


def test_a_tie_of_float32_must_not_go_against_an_exact_search():
    x, codebook = make_inputs(SMALL)
    codebook[1] = codebook[0] + 1e-7  # nearer or farther by less than float32 rounding of |x - e|^2
    x[0] = codebook[0]
    nearest, second = torch.zeros(SMALL.n, dtype=torch.int64), torch.zeros(SMALL.n, dtype=torch.int64)
    second[0] = 1
    assert check_indices(x, codebook, nearest, second) == 1
    with pytest.raises(Disagreement, match="ours is farther"):
        check_indices(x, codebook, second, nearest)
    assert check_indices(x, codebook, second, nearest, ours_is_exact=False) == 1


@pytest.mark.parametrize(
    "theirs",
    [torch.zeros(3, dtype=torch.int64), torch.full((SMALL.n,), SMALL.k), torch.full((SMALL.n,), -1)],
    ids=["shape", "too-large", "negative"],
)
def test_indices_that_are_none_are_refused(theirs):
    x, codebook = make_inputs(SMALL)
    with pytest.raises(Disagreement):
        check_indices(x, codebook, cdist_argmin(x, codebook)(), theirs)


@pytest.mark.parametrize("bad", [1e-3, float("nan")], ids=["far", "nan"])
def test_check_close(bad):
    ones = torch.ones(4)
    check_close("ones", ones, ones + 1e-7, relative=1e-5)
    with pytest.raises(Disagreement, match="ones"):
        check_close("ones", ones, torch.tensor([1, 1, 1, 1 + bad]), relative=1e-5)


# --- pairs on a clock of our own ------------------------------------------------------------------


class FakeClock:
    """Time passes only in calls; the machine gets slower by ``drift`` with every call."""

    def __init__(self, drift: float = 0.0) -> None:
        self.time, self.drift, self.speed, self.calls = 0.0, drift, 1.0, []

    def __call__(self) -> float:
        return self.time

    def work(self, name: str, seconds: float):
        def call() -> None:
            self.calls.append(name)
            self.time += seconds * self.speed
            self.speed += self.drift

        return call


def test_ratio_of_pairs_is_the_peers_time_over_ours():
    clock = FakeClock()
    pairs = measure_pairs(
        clock.work("ours", 2.0),
        clock.work("peer", 6.0),
        timer=WallTimer(clock),
        budget=Budget(seconds=1.0, min_pairs=4, max_pairs=9),
    )
    assert pairs.ratio == Spread(3.0, 3.0, 3.0)
    assert pairs.ours_s.median == 2.0
    assert pairs.peer_s.median == 6.0
    assert len(pairs.ours) == 4, "the budget was used up after the smallest number of pairs"
    assert clock.calls[-4:] == ["ours", "peer", "peer", "ours"], "who goes first must alternate"


def test_ratio_of_pairs_withstands_drift_that_misleads_separate_medians():
    budget = Budget(seconds=1e9, min_pairs=10, max_pairs=10)
    clock = FakeClock(drift=0.1)
    pairs = measure_pairs(
        clock.work("ours", 1.0), clock.work("peer", 1.0), timer=WallTimer(clock), budget=budget
    )
    assert pairs.ratio.median == pytest.approx(1.0, abs=0.01)
    clock = FakeClock(drift=0.1)
    alone = [
        measure.measure_alone(clock.work(w, 1.0), timer=WallTimer(clock), budget=budget).median for w in "ab"
    ]
    assert alone[1] / alone[0] > 1.5


def test_short_calls_are_repeated_and_called_once_untimed_before_each_sample():
    clock = FakeClock()
    budget = Budget(seconds=1e9, sample_s=0.05, min_pairs=2, max_pairs=2)
    pairs = measure_pairs(
        clock.work("ours", 0.01), clock.work("peer", 0.05), timer=WallTimer(clock), budget=budget
    )
    assert pairs.ours == pytest.approx((0.01, 0.01))
    assert clock.calls.count("ours") == 2 + 2 * (1 + 5)
    assert clock.calls.count("peer") == 2 + 2 * (1 + 1)


def test_a_contender_far_slower_than_expected_gets_fewer_pairs_but_one():
    clock = FakeClock()
    budget = Budget(seconds=1.0, min_pairs=5, max_pairs=9, longest=50.0)
    for seconds, pairs in ((1.0, 5), (10.0, 3), (100.0, 1)):
        calls = clock.work("ours", 0.5), clock.work("peer", seconds)
        assert len(measure_pairs(*calls, timer=WallTimer(clock), budget=budget).ours) == pairs


def test_time_is_shared_among_the_contenders_to_come():
    now = [0.0]
    deadline = measure.Deadline(90.0, lambda: now[0])
    shares = measure.Shares(deadline, 3, Budget(seconds=20.0))
    first = shares.next()
    assert (first.seconds, first.longest) == (10.0, 30.0)
    now[0] = 10.0  # the first needed less than its share
    assert shares.next().longest == 40.0
    now[0] = 100.0
    assert shares.next().longest == 0.0, "late, but it is measured: once"


# --- memory ---------------------------------------------------------------------------------------


def test_memory_probe_sees_an_n_by_k_array_and_not_the_outputs():
    case = Case(4096, 16, 4096)
    x, codebook = make_inputs(case)
    matrix = 4 * case.n * case.k
    almost = 0.95 * matrix  # the system counts pages in batches
    assert peak_beyond_outputs(cdist_argmin(x, codebook)) >= almost
    assert peak_beyond_outputs(our_search(x, codebook)) < matrix / 8
    assert peak_beyond_outputs(lambda: torch.ones(case.n, case.k)) < matrix / 8
    assert peak_beyond_outputs(lambda: torch.ones(case.n, case.k)[:1].clone()) >= almost


def test_memory_probes_run_in_a_process_of_their_own_and_report_failure():
    probes = [
        Probe("search", "torch.cdist", 2048, 8, 4096),
        Probe("search", "vq_kernels exact", 2048, 8, 4096),
    ]
    peer, ours = measure_probes(probes)
    assert isinstance(peer, int)
    assert isinstance(ours, int)
    assert ours < 2048 * 4096 * 4 / 8 < peer
    with pytest.raises(RuntimeError, match="memory probes failed"):
        measure_probes([Probe("search", "nobody", 16, 4, 4)])


# --- roofs, rows, files ---------------------------------------------------------------------------


def test_lowest_time_names_the_roof():
    case = Case(1000, 10, 100)
    assert lowest_time(case, Roofs(2e6, 2e9, 1e15), work="search") == (1.0, "float32")
    assert lowest_time(case, Roofs(2e6, 2e6, 1e15), work="search", unit="bfloat16 x3") == (3.0, "bfloat16 x3")
    seconds, roof = lowest_time(case, Roofs(1e15, 1e15, case.step_bytes), work="step")
    assert (seconds, roof) == (pytest.approx(1.0), "memory")
    assert (
        lowest_time(case, Roofs(1.0, 1e15, 1e15, epilogue=1e5), work="search", unit="bfloat16")[1]
        == "epilogue"
    )
    with pytest.raises(ValueError, match="tf32"):
        lowest_time(case, Roofs(1.0, 1.0, 1.0), work="search", unit="tf32")


def test_the_epilogue_is_bound_by_its_half_rate_units() -> None:
    from benchmarks.roofline import EPILOGUE_INSTRUCTIONS, LANES, epilogue_clocks

    assert epilogue_clocks() == 2.0 / 64 > EPILOGUE_INSTRUCTIONS / LANES


def test_codes_are_read_from_the_l2_cache_once_a_tile_of_rows() -> None:
    case = Case(1280, 64, 512)
    roofs = Roofs(1e15, 1e15, 1e15, epilogue=1e15, l2=10 * 2 * 512 * 64)
    assert lowest_time(case, roofs, work="search", unit="bfloat16") == (1.0, "L2")
    assert lowest_time(case, roofs, work="search", unit="bfloat16 x3") == (2.0, "L2")


def test_table_marks_the_best_peer_the_target_and_what_was_not_measured():
    once = Spread(1e-3, 1e-3, 1e-3)
    rows = [
        report.Row("search", SMALL, "vq_kernels exact", spread=once, peak=2**20),
        report.Row("search", SMALL, "slow", spread=once, ratio=Spread(3, 2, 4), target=4.0),
        report.Row("search", SMALL, "fast", spread=Spread(5e-4, 0, 0), ratio=Spread(2, 2, 2), target=2.0),
        report.Row("search", SMALL, "absent", reason="not installed"),
    ]
    report.mark_best(rows)
    assert [row.best for row in rows] == [False, False, True, False]
    lines = report.table(rows).splitlines()
    assert any(line.startswith("* fast") and line.endswith("2x met") for line in lines)
    assert any(line.startswith("  slow") and line.endswith("4x missed") for line in lines)
    assert any("absent" in line and "not measured: not installed" in line for line in lines)
    assert rows[1].as_json()["time_over_ours"] == {"median": 3, "low": 2, "high": 4}


def test_results_carry_machine_versions_commit_and_date(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    path = machine.write_results({**machine.describe(), "rows": []})
    written = json.loads(path.read_text())
    assert {"machine", "versions", "commit", "date", "threads", "modified"} <= written.keys()
    assert (
        written["versions"]["torch"] == torch.__version__.split("+")[0] or "+" in written["versions"]["torch"]
    )
    assert path.name == f"{written['machine']['name']}-{written['date'][:10]}.json"
    with pytest.raises(ValueError, match="commit"):
        machine.write_results({"machine": {}, "versions": {}, "date": ""})


def test_a_busy_machine_is_noted():
    assert machine.load_warning(0.1) is None
    assert machine.load_warning(0.1, 0.01, 0.1) is None
    assert "load 1.7 before the run" in machine.load_warning(1.7)
    words = machine.load_warning(0.0, 0.07, 0.2)
    assert "7% of the processors' time taken by other machines; samples of a row 20% apart" in words


def test_stolen_time_is_that_since_the_start(tmp_path: Path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2 3\n")
    meter = machine.StealMeter(stat)
    stat.write_text("cpu  160 0 50 810 10 0 0 70 0 0\ncpu0 1 2 3\n")
    assert meter.share() == 0.3
    assert machine.StealMeter(tmp_path / "absent").share() is None


def test_machine_name_is_that_of_the_processor(monkeypatch):
    found = {"cpu": {"model": "Some(R) CPU @ 2.1GHz", "found": ["avx512f"], "cores": 4}}
    monkeypatch.setattr(machine.info, "collect", lambda: found)
    assert machine.machine_name() == "some-cpu-2-1ghz-avx512-4-cores"


# Of a unit, the least and the most products for each of float32. With AVX2 int16 takes two instructions where
# float32 takes two for half as many products, on two or three pipes: 1.5 to 2; int8 is at 2 to 2.4 there.
RATES = {"int8": (1.4, 10.0), "int16": (1.1, 2.6)}


def _wrong_rates() -> list[str]:
    """What was measured and cannot be."""
    product = max(matmul_rate(torch.float32, size) for size in (256, 512))
    float32 = register_rate("float32")
    wrong = [] if 0.6 * product < float32 < 1e12 else [f"float32 {float32:.3g}, matrices {product:.3g}"]
    for unit, (least, most) in RATES.items():
        rate = register_rate(unit)
        if (rate is not None) != (unit in native.cpu_features()["first_passes"]):
            wrong.append(f"{unit} {rate}")
        elif rate is not None and not least * float32 < rate < most * float32:
            wrong.append(f"{unit} {rate:.3g}, float32 {float32:.3g}")
    return wrong


def test_products_in_registers_are_a_roof_of_products_of_matrices():
    """The loops do what they say: more than any product of matrices does, and no more than two a clock."""
    if native.unavailable_reason() is not None:
        pytest.skip("without the native module")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wrong = [_wrong_rates()]
        while wrong[-1] and len(wrong) < 5:  # the clock may have changed between two of them
            wrong.append(_wrong_rates())
    finally:
        torch.set_num_threads(threads)
    assert not wrong[-1], wrong


def test_the_least_time_of_an_int8_search():
    case = Case(1000, 10, 100)
    assert lowest_time(case, Roofs(1.0, 1.0, 1e15, int8=2e6), work="search", unit="int8") == (1.0, "int8")
    assert first_pass_unit(Case(10, 10, 10)) == "float32"
