"""What goes through the door of the native module is what its header says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vq_kernels.backends import marshal

HEADER = Path(__file__).parents[2] / "csrc" / "vq_types.h"


@pytest.mark.parametrize(
    ("enum", "numbers"),
    [
        ("VqDtype", {str(dtype).removeprefix("torch."): n for dtype, n in marshal.DTYPES.items()}),
        ("VqMetric", marshal.METRICS),
        ("VqPrecision", marshal.PRECISIONS),
        ("VqGradient", marshal.GRADIENTS),
    ],
)
def test_numbers_are_those_of_the_header(enum: str, numbers: dict[str, int]) -> None:
    match = re.search(rf"enum {enum} {{(.*?)}}", HEADER.read_text())
    assert match is not None
    members = dict(re.findall(r"VQ_(\w+) = (\d+)", match[1]))
    assert {name.lower(): int(n) for name, n in members.items()} == numbers
