"""docs/differences.md: each of its lines has a test of its name, and each of those tests a line."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_line_has_its_test() -> None:
    text = (HERE.parents[1] / "docs" / "differences.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert len(lines) > 20
    assert len(set(lines)) == len(lines)
    tests: list[str] = []
    for file in HERE.glob("test_differences_*.py"):
        tests += re.findall(r"^def test_(\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(tests) == sorted(lines)
