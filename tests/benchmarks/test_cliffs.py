"""The bench of awkward inputs, at sizes that take a moment."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from benchmarks import cliffs
from benchmarks.__main__ import main
from benchmarks.measure import Budget
from benchmarks.soak_inputs import Size

if (_reason := cliffs.reason()) is not None:
    pytest.skip(_reason, allow_module_level=True)

SMALL = Size(40, 16, 30)
BUDGET = Budget(seconds=0.0, sample_s=0.0, min_pairs=1)


def test_the_table_has_every_kind() -> None:
    assert [name for name, ratio in cliffs.table(BUDGET, SMALL) if ratio > 0.0] == list(cliffs.TABLE)


@pytest.mark.parametrize("change", cliffs.CHANGES, ids=lambda change: change.__name__)
def test_rows_stay_finite_and_follow_from_the_seed(change: cliffs.Change) -> None:
    awkward = cliffs.Awkward(SMALL, (change,), seed=5)
    x, codebook = awkward.draw()
    assert x.shape == (40, 16)
    assert codebook.shape == (30, 16)
    assert x.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(awkward.draw(), (x, codebook), strict=True))
    assert change.__name__ in str(awkward)


def test_compositions_follow_from_the_seed() -> None:
    first, again, other = (list(islice(cliffs.compositions(seed), 20)) for seed in (1, 1, 2))
    assert first == again != other
    assert {len(awkward.changes) for awkward in first} == {1, 2, 3}


def test_the_search_prints_the_worst(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios = iter([2.0, 2.0, 1.5, 9.0, 8.0, 4.0])
    monkeypatch.setattr(cliffs, "slowdown", lambda *_: _Pairs(next(ratios)))
    clock = iter([1.0, 1.0, 1.0, 1.0, 0.0])
    monkeypatch.setattr(
        cliffs, "Deadline", lambda _: type("D", (), {"left": property(lambda _: next(clock))})()
    )
    assert main(["--cliffs", "--seconds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["2.0x", "8.0x", "4"]
    assert lines[-1] == "4 inputs, 2 above 3x, the worst 8.0x"


class _Pairs:
    def __init__(self, median: float) -> None:
        self.ratio = self
        self.median = median
