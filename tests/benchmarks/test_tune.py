"""The tuner, run in Triton's interpreter with a timer that computes a cost of the configuration."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.runtime.errors import OutOfResources

from benchmarks import machine
from benchmarks.agreement import Disagreement
from benchmarks.measure import Budget, Deadline
from benchmarks.tune import descent as tune_descent
from benchmarks.tune import run as tune
from benchmarks.tune import source as tune_source
from benchmarks.tune.descent import DIMS, ENTRIES, Descent, Entry, Search, in_table, legal_values, neighbours
from benchmarks.work import Case
from vq_kernels.backends import reference
from vq_kernels.backends.triton import common, nearest, tuned
from vq_kernels.backends.triton.plan import Config, first_pass, make_config, make_plan

CASE = Case(17, 16, 40)
ENTRY = Entry(3, 32)
ONCE = Budget(seconds=0.0, sample_s=0.0, min_pairs=1, max_pairs=1)
BEST = Config(32, 32, 16, 4, 1, 128, True)


def steps(config: Config, entry: Entry = ENTRY) -> int:
    """How many changes of one field lead to BEST."""
    return sum(
        abs(values.index(getattr(config, name)) - values.index(getattr(BEST, name)))
        for name in Config._fields[: len(config.stored())]
        if (values := legal_values(name, entry))
    )


class CostTimer:
    """1 s for BEST and 10 s more for every step away from it; calls nothing."""

    @staticmethod
    def cost(config: Config) -> float:
        return 1.0 + 10.0 * steps(config)

    def now(self) -> float:
        return 0.0

    def sample(self, call: Search, repeats: int) -> float:
        return self.cost(call.config)


@pytest.fixture(autouse=True)
def _interpreter(device: torch.device) -> None:
    if device.type != "cpu" or not common.interpreted():
        pytest.skip("tests the tuner in the interpreter")


@pytest.fixture
def table() -> dict:
    return dict(tuned.TABLE)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """The reference in place of the interpreted kernels; a function that replaces it with another search."""

    def replace(search) -> None:
        monkeypatch.setattr(nearest, "nearest_code", search)

    replace(lambda *args: reference.nearest_code(*args[:4]))
    return replace


def descent(entry: Entry = ENTRY) -> Descent:
    return Descent(entry, CASE, "cpu", CostTimer(), ONCE)


def test_descent_runs_the_kernels(monkeypatch: pytest.MonkeyPatch, table: dict) -> None:
    """Interpreted kernels, two values of two fields: a few calls only, each takes half a second."""
    few = {"codes": (32, 64), "rows": (32, 64), "depth": (0,), "warps": (4,), "stages": (1,)}
    few |= {"registers": (None,), "resident": (True,)}
    monkeypatch.setattr(tune_descent, "legal_values", lambda name, entry: few[name])
    launched = []
    kernel = nearest.search_kernel

    class Recorded:
        def __getitem__(self, grid):
            return lambda *args, **constants: (launched.append(constants), kernel[grid](*args, **constants))

    monkeypatch.setattr(nearest, "search_kernel", Recorded())
    found = descent().run(Deadline(1e9))
    assert found.best == Config(32, 32, 0, 4, 1, None, True)
    assert found.finished
    tiles = {(constants["config"].rows, constants["config"].codes) for constants in launched}
    assert tiles == {(64, 64), (64, 32), (32, 64), (32, 32)}
    assert table == tuned.TABLE


def test_descent_finds_the_known_minimum(quick, table: dict) -> None:
    found = descent().run(Deadline(1e9))
    assert found.stored == Config(64, 64, 0, 4, 1, None, True)
    assert found.best == BEST
    assert found.finished
    assert found.ratio == CostTimer.cost(found.stored) / CostTimer.cost(BEST)
    assert [trial for trial in found.trials if trial.reason] == []
    assert len({trial.config for trial in found.trials}) == len(found.trials)
    assert table == tuned.TABLE
    assert list(table) == list(tuned.TABLE)


def test_time_runs_out_between_candidates(quick) -> None:
    ticks = iter(range(100))
    found = descent().run(Deadline(4.0, clock=lambda: float(next(ticks))))
    assert not found.finished
    assert 0 < len(found.trials) < 5
    assert steps(found.best) < steps(found.stored)


def test_time_is_shared_evenly_and_what_is_left_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(tune, "Deadline", lambda seconds: Deadline(seconds, clock=lambda: now[0]))
    given = []

    def run(entry: Entry, deadline: Deadline) -> tune.Outcome:
        given.append(deadline.seconds)
        now[0] += 10.0 if len(given) == 1 else 45.0
        return tune.Outcome(entry, BEST, BEST)

    entries = ENTRIES[:4]
    outcomes: list[tune.Outcome] = []
    tune.tune(entries, 100.0, run, outcomes)
    assert given == pytest.approx([25.0, 30.0, 22.5])
    assert "3x512" in tune.table(outcomes, ENTRIES, 100.0)
    assert tune.table(outcomes, entries, 100.0).endswith(f"{entries[3]!s:<8}  not finished within 100 s")


@pytest.mark.parametrize("entry", [ENTRY, Entry(1, 32)], ids=["exact", "fast"])
def test_a_wrong_result_raises(entry: Entry, quick, table: dict) -> None:
    def wrong(x, codebook, metric, precision, packed=None):
        indices = reference.nearest_code(x, codebook, metric, precision)
        if tuned.TABLE[0][entry.products][0][1][1] == 128:  # codes; slower, so never kept
            indices[0, 3] = (indices[0, 3] + 1) % len(codebook)
        return indices

    quick(wrong)
    with pytest.raises(Disagreement):
        descent(entry).run(Deadline(1e9))
    assert table == tuned.TABLE


@pytest.mark.parametrize(
    "error",
    [OutOfResources(300000, 232448, "shared memory"), RuntimeError("PassManager::run failed")],
    ids=["shared", "compiler"],
)
@pytest.mark.parametrize("where", ["exact", "high"], ids=["timed", "also_served"])
def test_a_candidate_that_fails_is_recorded_and_skipped(
    where: str, error: Exception, quick, table: dict
) -> None:
    def failing(x, codebook, metric, precision, packed=None):
        if precision == where and tuned.TABLE[0][3][0][1][0] == 32:  # rows
            raise error
        return reference.nearest_code(x, codebook, metric, precision)

    quick(failing)
    found = descent().run(Deadline(1e9))
    assert found.best == BEST._replace(rows=64)
    failed = [trial for trial in found.trials if trial.reason]
    assert failed
    assert {trial.config.rows for trial in failed} == {32}
    assert all(trial.reason == f"{type(error).__name__}: {error}" for trial in failed)
    assert table == tuned.TABLE


def test_other_errors_are_not_swallowed(quick) -> None:
    tuner = descent()

    def broken(*args):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    quick(broken)
    with pytest.raises(RuntimeError, match="illegal"):
        tuner.run(Deadline(1e9))


@pytest.mark.parametrize("architecture", [0, 89, 90])
def test_the_table_is_replaced_and_restored(architecture: int, table: dict) -> None:
    plan = make_plan(torch.float32, torch.float32, "l2", "exact")
    inside = in_table(architecture, 3, BEST)
    inside.__enter__()
    assert make_config(architecture, plan, 4096).stored() == BEST.stored()
    assert not inside.__exit__(KeyError, KeyError("inside"), None)
    assert table == tuned.TABLE


def test_neighbours_of_every_stored_configuration_are_legal() -> None:
    for architecture, rules in tuned.TABLE.items():
        assert {largest for rule in rules.values() for largest, _ in rule} <= {*DIMS[:-1], tune_source.ANY}
        for entry in ENTRIES:
            config = tune_source.stored(architecture, *entry)
            if config.depth == entry.dim:
                config = config._replace(depth=0)
            found = list(neighbours(config, entry))
            assert len(found) > 6
            for other in found:
                assert sum(a != b for a, b in zip(config, other, strict=True)) == 1
                assert other.rows >= 16
                assert other.codes in (16, 32, 64, 128)
                assert other.depth in (0, 16, 32, 64, 128)
                assert entry.dim < 512 or (other.depth > 0 and not other.resident)
                assert triton.next_power_of_2(other.rows) == other.rows


def test_every_pair_has_its_number_of_products() -> None:
    for products, pairs in tune_descent.PAIRS.items():
        for pair in pairs:
            plan = make_plan(pair.x, pair.codebook, "l2", pair.precision)
            assert products in (plan.products, first_pass(plan, DIMS[0]).products)


# --- tuned.py -------------------------------------------------------------------------------------


def load(path: Path) -> dict:
    spec = importlib.util.spec_from_file_location("tuned_copy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TABLE


def ruff_accepts(path: Path) -> None:
    config = ["--config", str(machine.ROOT / "pyproject.toml"), "--no-cache", str(path)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def outcome(entry: Entry, config: Config) -> tune.Outcome:
    trial = tune_descent.Trial(config, 0.001, 1.5)
    return tune.Outcome(entry, config, config, 0.0015, 0.001, 1.5, [trial], True)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that reports some outcomes into a copy of tuned.py and returns the copy's path."""
    pytest.importorskip("ruff")
    copy = tmp_path / "tuned.py"
    copy.write_text(tune_source.PATH.read_text())
    monkeypatch.setattr(machine, "RESULTS", tmp_path)

    def write(architecture: int, device: str, **found: Config) -> Path:
        names = {f"e{entry}": entry for entry in ENTRIES}
        outcomes = [outcome(names[name], config) for name, config in found.items()]
        description = machine.describe() | {"date": "2030-01-02T03:04:05Z"}
        description["machine"]["name"] = device
        tune.report(
            *([o.entry for o in outcomes], outcomes),
            architecture=architecture,
            description=description,
            seconds=1.0,
            write=copy,
        )
        monkeypatch.setattr(tuned, "TABLE", load(copy))
        return copy

    return write


def looked_up(table: dict, architecture: int) -> list:
    known = table[max(a for a in table if a <= architecture)]
    return [
        next(values for largest, values in known[products] if dim <= largest)
        for products in (1, 2, 3)
        for dim in (1, 32, 33, 64, 65, 128, 129, 256, 257, 4096)
    ]


def test_a_block_is_written_and_written_again(written, table: dict, capsys) -> None:
    copy = written(90, "made-up-h200", e3x64=BEST, e1x512=BEST._replace(resident=False))
    ruff_accepts(copy)
    new = load(copy)
    expected = dict(zip([(p, d) for p in (1, 2, 3) for d in range(10)], looked_up(table, 90), strict=True))
    expected |= dict.fromkeys([(3, 2), (3, 3)], BEST.stored())
    expected |= dict.fromkeys([(1, 8), (1, 9)], BEST._replace(resident=False).stored())
    assert looked_up(new, 90) == list(expected.values())
    assert {a: rules for a, rules in new.items() if a != 90} == {a: r for a, r in table.items() if a != 90}
    assert copy.read_text().count("_SM90: _Rules") == 1
    printed = capsys.readouterr().out
    assert "        (64, (32, 32, 16, 4, 1, 128, True)),  # made-up-h200, 2030-01-02\n" in printed
    assert printed.count("  # made-up-h200") == 2
    results = json.loads((copy.parent / "made-up-h200-2030-01-02-tune.json").read_text())
    assert results["outcomes"][0]["trials"][0]["config"]["codes"] == 32

    written(90, "made-up-h100", e3x32=BEST)
    ruff_accepts(copy)
    lines = [line for line in copy.read_text().splitlines() if "  # made-up" in line]
    assert [line.rpartition("# ")[2].partition(",")[0] for line in lines] == [
        "made-up-h200",
        "made-up-h100",
        "made-up-h200",
    ]
    assert looked_up(load(copy), 90)[20:24] == [BEST.stored()] * 4
    assert copy.read_text().count("_SM90: _Rules") == 1


@pytest.mark.parametrize("architecture", [80, 89], ids=["8.0", "8.9"])
def test_an_architecture_gets_a_block_of_its_own(architecture: int, written, table: dict) -> None:
    """What is tuned on 8.0 must not reach 8.6, nor what is tuned on 8.9 the others of its generation."""
    copy = written(architecture, "nvidia", e2x128=BEST)
    ruff_accepts(copy)
    new = load(copy)
    assert BEST.stored() in looked_up(new, architecture)
    for other in {80, 86, 90, 100, 120} - {architecture}:
        assert looked_up(new, other) == looked_up(table, other)


def test_without_cuda_there_is_one_clear_message(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--only", "3x64", "1x512"]) == 2
    assert "CUDA GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.main(["--only", "3x65"])
