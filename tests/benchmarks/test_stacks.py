"""The bench of few rows and stacks, at sizes that take a moment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import stacks
from benchmarks.measure import Budget

SMALL = [replace(s, stages=min(s.stages, 3), k=60, rows=(1, 20)) for s in (stacks.STACKS + stacks.SEARCHES)]


def test_it_has_a_line_for_every_number_of_rows() -> None:
    lines = list(stacks.lines(SMALL, Budget(seconds=0.0, sample_s=0.0, min_pairs=1)))
    assert len(lines) == 2 * len(SMALL)
    assert all("prepared" in line for line in lines)


def test_a_search_that_differs_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(SMALL[0], stock=lambda x, codebook: stacks.distances(x, -codebook))
    with pytest.raises(AssertionError, match="codes differ"):
        stacks.compare(wrong, 20, Budget(seconds=0.0, sample_s=0.0, min_pairs=1))


def test_a_gpu_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        stacks.main(["--device", "cuda"])
    assert "--device is cuda, but torch sees no CUDA GPU" in capsys.readouterr().err
