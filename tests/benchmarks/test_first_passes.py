"""The bench of first passes, at sizes that take a moment."""

from __future__ import annotations

import pytest

from vq_kernels.backends import native

if (_reason := native.unavailable_reason()) is not None:
    pytest.skip(_reason, allow_module_level=True)

from benchmarks import first_passes
from benchmarks.cliffs import TABLE
from benchmarks.measure import Budget
from benchmarks.paths import usable_paths
from benchmarks.soak_inputs import Size


def test_it_has_a_line_for_every_size_and_awkward_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_passes, "SIZES", (Size(40, 16, 30),))
    monkeypatch.setattr(first_passes, "AWKWARD", Size(40, 16, 30))
    lines = list(first_passes.lines(usable_paths(), Budget(seconds=0.0, sample_s=0.0, min_pairs=1)))
    assert sum(line.startswith("40 x 16 x 30  ") for line in lines) >= 2
    assert [line[:40].strip() for line in lines[-len(TABLE) :]] == list(TABLE)
