"""Triton kernels compiled for GPUs that need not be there: registers, spills, matrix instructions, epilogue.

``triton_targets.py`` compiles everything once for each version of Triton and content of the sources, in a
process of its own without the interpreter; ``build/triton_targets`` keeps what it found. ``make test`` is
content with the kernels of one target; all of them, and those of the oldest version that the backend accepts,
unpacked once into ``build/triton-VERSION``, are left to ``make test MARKS=slow``.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from typing import Any

import pytest
import torch
from cuda_host import ROOT, digest, locked

pytest.importorskip("triton")

from triton_versions import HERE, OLDEST, output_of

CACHE = ROOT / "build" / "triton_targets"
pytestmark = pytest.mark.timeout(1200)  # a version takes minutes of a core


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("installed", "--short"), id="installed"),
        pytest.param(("installed",), id="all_targets", marks=pytest.mark.slow),
        pytest.param((OLDEST, "--short"), id=OLDEST, marks=pytest.mark.slow),
    ],
)
def targets(request: pytest.FixtureRequest) -> dict[str, Any]:
    which, *short = request.param
    version = importlib.metadata.version("triton") if which == "installed" else which
    sources = [HERE / "triton_targets.py", *sorted((ROOT / "vq_kernels").rglob("*.py"))]
    report = CACHE / f"{version}-{digest(sources, torch.__version__, *short)}.json"
    with locked(CACHE / f"{version}.lock"):
        if not report.exists():
            part = report.with_suffix(".part")
            part.write_text(output_of("triton_targets.py", which, *short))
            part.rename(report)
        found: dict[str, Any] = json.loads(report.read_text())
    assert found["version"] == version
    results: dict[str, Any] = found["results"]
    return {name: result | {"version": found["version"]} for name, result in results.items()}


def searches(targets: dict[str, Any]) -> dict[str, Any]:
    return {name: result for name, result in targets.items() if "tile_bytes" in result}


# Instructions for a (row, code) pair, all of the loop counted: the score (1), the column into its low
# bits (1), the minimum (1) or the two smallest (3); the rest is the product, loads and bookkeeping.
# A plain minimum and argmin of a tile takes 6.7 at the first of these shapes.
PER_PAIR = {
    "90-bf16-bf16-fast-64": 5.1,
    "90-bf16-bf16-fast-128": 5.7,
    "90-bf16-bf16-fast-256": 6.4,
    "90-f32-f32-fast-64": 4.9,
    "90-f32-f32-high-64": 8.9,
    "90-f32-f32-exact-8": 6.9,
    "90-f32-f32-exact-64": 7.1,
    "90-f32-f32-exact-100": 7.5,
    "90-f32-f32-exact-128": 7.6,
    "90-f32-f32-exact-200": 8.0,
    "90-f32-f32-exact-256": 8.0,
    "90-f32-f32-exact-512": 11.0,
    "90-bf16-f32-exact-64": 7.1,
    "90-f16-f16-exact-64": 7.1,
    "90-f32-f32-exact-128-odd": 7.6,
    "90-f32-f32-exact-64-odd_maps": 7.1,
    "80-bf16-bf16-fast-64": 6.4,
    "80-f32-f32-exact-64": 9.0,
    "100-bf16-bf16-fast-64": 7.2,
    "100-f32-f32-exact-64": 12.0,
}
SHARED = {"80": 99, "90": 227, "100": 227, "120": 99}
MATRIX = {"80": "HMMA", "90": "HGMMA", "100": "UTCHMMA", "120": "HMMA"}

# The second pass gathers its rows, a 64-bit address for every number where they are not aligned, and loads 16
# dimensions of an exact score at once; it is entered by a few rows in a hundred.
SPILLS = {
    "90-f32-f32-exact-128-odd-resolve": 14,
    "90-f32-f32-exact-200-odd-resolve": 21,
    "90-f32-f32-exact-200-resolve": 6,
    "90-bf16-f32-exact-100-odd-resolve": 4,
    "90-bf16-f32-exact-64-resolve": 2,
    "90-f32-f32-exact-64-maps-resolve": 10,
    "90-f32-f32-exact-64-odd_maps-resolve": 10,
    "90-f32-f32-exact-512-resolve": 2,
    "80-f32-f32-exact-64-resolve": 12,
    "120-f32-f32-exact-64-resolve": 16,
    # All products within the 128 registers that let two programs share a multiprocessor.
    "90-f32-f32-exact-64-middle": 9,
    "90-f32-f32-exact-64-maps-middle": 8,
    "90-bf16-f32-exact-64-middle": 7,
    # One number, before the loop, with 3.6 at the limit of 128 registers.
    "90-f32-f32-exact-100": 2,
    "90-f32-f32-exact-128": 2,
    # With 3.6, where it has registers left.
    "few-128": 4,
    "few-50": 4,
}


def test_no_kernel_spills(targets: dict[str, Any]) -> None:
    spills = {name: result["spills"] for name, result in targets.items() if result.get("spills")}
    assert {name: count for name, count in spills.items() if count > SPILLS.get(name, 0)} == {}


def test_searches_use_the_tensor_cores(targets: dict[str, Any]) -> None:
    for name, result in searches(targets).items():
        assert MATRIX[name.split("-")[0]] in result["loop"], name


def test_searches_fit_the_machine(targets: dict[str, Any]) -> None:
    for name, result in searches(targets).items():
        assert result["registers"] <= result["limit"], name
    for name, result in targets.items():
        assert result.get("shared", 0) <= SHARED.get(name.split("-")[0], 227) * 1024, name
        # Beyond the columns of a multiprocessor of 10.x Triton compiles a kernel that traps.
        assert result.get("tensor_memory", 0) <= 512, name


def test_two_programs_share_a_multiprocessor(targets: dict[str, Any]) -> None:
    """So that one computes products while the other reduces: 64 Ki registers, 227 KiB shared memory."""
    for case in ("bf16-bf16-fast-64", *(f"f32-f32-exact-{dim}" for dim in (8, 64, 100, 128))):
        result = targets[f"90-{case}"]
        assert 2 * result["registers"] * 32 * result["warps"] <= 65536, case
        assert 2 * (result["shared"] + 1024) <= 227 * 1024, case


def test_epilogue_is_cheap(targets: dict[str, Any]) -> None:
    per_pair = {case: targets[case]["per_pair"] for case in PER_PAIR if case in targets}
    assert len(per_pair) >= 11
    assert {case: count for case, count in per_pair.items() if count > PER_PAIR[case]} == {}


def test_a_tile_of_codes_is_read_once(targets: dict[str, Any]) -> None:
    """Global to shared memory: the codes' parts and at most one bias a thread, with 3.6 a bias for each of
    the 32 columns of a thread; to registers, row bounds."""
    for case, result in searches(targets).items():
        if case.startswith("100") or case.endswith("512"):
            continue
        threads = 32 * result["warps"]
        biases = 4 * threads * (32 if result["version"] == OLDEST else 1)
        assert result["tile_bytes"] <= result["copied"] * threads <= result["tile_bytes"] + biases, case
        assert result["loaded"] <= (56 if case.endswith("-odd") else 36), case


def test_the_writing_pass_leaves_room_for_five_programs(targets: dict[str, Any]) -> None:
    """It runs at the speed of memory: the more programs, the more bytes are under way."""
    written = {name: r["registers"] for name, r in targets.items() if re.match("train-rows.*-write$", name)}
    assert written
    assert max(written.values()) <= 96


def test_exact_scores_are_not_fused(targets: dict[str, Any]) -> None:
    """The order of operations of base.py: no fused multiply-add in float64."""
    resolved = [result for name, result in targets.items() if re.search("resolve$|^few-", name)]
    assert resolved
    assert [result["fused_float64"] for result in resolved] == [0] * len(resolved)


def test_few_rows_leave_room_for_five_programs(targets: dict[str, Any]) -> None:
    """Its programs wait for memory: numbers are loaded four at a time, and others run meanwhile."""
    for dim, loads in ((100, 10), (128, 8), (50, 0)):
        result = targets[f"few-{dim}"]
        assert 5 * 128 * result["registers"] <= 65536, dim
        assert result["vectors"] == loads, dim


def test_statistics_do_not_wait_for_their_atomics(targets: dict[str, Any]) -> None:
    assert "ATOMG" not in targets["other-accumulate"]["atomics"]


def test_all_sizes_are_read_before_one_is_written(targets: dict[str, Any]) -> None:
    """The sizes are loaded in two layouts, by different warps, and updated in place."""
    update = targets["train-rows-f32-64-all-262144-ema"]["size_update"]
    assert re.fullmatch(r"[lb]*lb+s", update)


def test_rotation_is_rounded_correctly(targets: dict[str, Any]) -> None:
    """Of opposite directions nothing must be left in u + q, which is divided by its clamped norm."""
    assert targets["train-rows-f32-64-all-262144-backward"]["approximate"] == 0


def test_compiles_for_gfx942(targets: dict[str, Any]) -> None:
    if "gfx942" not in targets:
        pytest.skip("among all targets only")
    assert any("f16" in name for name in targets["gfx942"]["mma"])
