"""Triton kernels compiled for GPUs that need not be there: registers, spills, matrix instructions, epilogue.

``triton_targets.py`` compiles everything once, in one process without the interpreter; the workers of a
test session share its results.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from triton_targets import OTHERS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    report = shared / "triton_targets.json"
    with open(shared / "triton_targets.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, str(HERE / "triton_targets.py")],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            report.write_text(done.stdout)
        results: dict[str, Any] = json.loads(report.read_text())
    return results


# Instructions for a (row, code) pair, all of the loop counted: the score (1), the column into its low
# bits (1), the minimum (1) or the two smallest (3); the rest is the product, loads and bookkeeping.
# A plain minimum and argmin of a tile takes 6.7 at the first of these shapes.
PER_PAIR = {
    "90-bf16-bf16-fast-64": 4.9,
    "90-bf16-bf16-fast-128": 5.4,
    "90-bf16-bf16-fast-256": 6.4,
    "90-f32-f32-fast-64": 4.9,
    "90-f32-f32-high-64": 7.6,
    "90-f32-f32-exact-8": 6.8,
    "90-f32-f32-exact-64": 7.9,
    "90-f32-f32-exact-128": 8.5,
    "90-bf16-f32-exact-64": 7.6,
    "90-f16-f16-exact-64": 7.0,
    "80-bf16-bf16-fast-64": 6.3,
    "80-f32-f32-exact-64": 11.0,
    "100-bf16-bf16-fast-64": 7.0,
    "100-f32-f32-exact-64": 13.5,
}
SEARCHES = [*PER_PAIR, "90-f32-f32-exact-256", "90-f32-f32-exact-512", "120-f32-f32-exact-64"]
SHARED = {"80": 99, "90": 227, "100": 227, "120": 99}
MATRIX = {"80": "HMMA", "90": "HGMMA", "100": "UTCHMMA", "120": "HMMA"}


@pytest.mark.parametrize("case", SEARCHES)
def test_search_does_not_spill(case: str, targets: dict[str, Any]) -> None:
    assert targets[case]["spills"] == 0


@pytest.mark.parametrize("case", SEARCHES)
def test_search_uses_the_tensor_cores(case: str, targets: dict[str, Any]) -> None:
    assert MATRIX[case.split("-")[0]] in targets[case]["loop"]


@pytest.mark.parametrize("case", SEARCHES)
def test_search_fits_the_machine(case: str, targets: dict[str, Any]) -> None:
    result = targets[case]
    assert result["registers"] <= result["limit"]
    assert result["shared"] <= SHARED[case.split("-")[0]] * 1024


@pytest.mark.parametrize("case", [f"90-{x}-{e}-{p}-64" for x, e, p in (
    ("bf16", "bf16", "fast"), ("f32", "f32", "fast"), ("f32", "f32", "exact"), ("bf16", "f32", "exact"),
)])  # fmt: skip
def test_two_programs_share_a_multiprocessor(case: str, targets: dict[str, Any]) -> None:
    """So that one computes products while the other reduces: 64 Ki registers, 227 KiB shared memory."""
    result = targets[case]
    assert 2 * result["registers"] * 32 * result["warps"] <= 65536
    assert 2 * (result["shared"] + 1024) <= 227 * 1024


@pytest.mark.parametrize("case", PER_PAIR)
def test_epilogue_is_cheap(case: str, targets: dict[str, Any]) -> None:
    assert targets[case]["per_pair"] <= PER_PAIR[case]


@pytest.mark.parametrize("case", [c for c in SEARCHES if not c.startswith("100") and not c.endswith("512")])
def test_a_tile_of_codes_is_read_once(case: str, targets: dict[str, Any]) -> None:
    """Global to shared memory: the codes' parts and at most one bias a thread; to registers, row bounds."""
    result = targets[case]
    threads = 32 * result["warps"]
    assert result["tile_bytes"] <= result["copied"] * threads <= result["tile_bytes"] + 4 * threads
    assert result["loaded"] <= 36


@pytest.mark.parametrize("name", OTHERS)
def test_other_kernels_do_not_spill(name: str, targets: dict[str, Any]) -> None:
    assert targets[f"90-{name}"]["spills"] == 0


@pytest.mark.parametrize("name", ["resolve", "write"])
def test_exact_scores_are_not_fused(name: str, targets: dict[str, Any]) -> None:
    """The order of operations of base.py: no fused multiply-add in float64."""
    assert targets[f"90-{name}"]["fused_float64"] == 0


@pytest.mark.parametrize("name", ["write", "accumulate"])
def test_statistics_do_not_wait_for_their_atomics(name: str, targets: dict[str, Any]) -> None:
    assert "ATOMG" not in targets[f"90-{name}"]["atomics"]


def test_all_sizes_are_read_before_one_is_written(targets: dict[str, Any]) -> None:
    """The sizes are loaded in two layouts, by different warps, and updated in place."""
    assert re.fullmatch(r"[lb]*lb+s", targets["90-ema"]["size_update"])


def test_rotation_is_rounded_correctly(targets: dict[str, Any]) -> None:
    """Of opposite directions nothing must be left in u + q, which is divided by its clamped norm."""
    assert targets["90-backward"]["approximate"] == 0


def test_compiles_for_gfx942(targets: dict[str, Any]) -> None:
    assert any("f16" in name for name in targets["gfx942"]["mma"])
