"""How the Triton kernels are launched: every code prepared, tuned stages, few variants, wide offsets."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import check_found

pytest.importorskip("triton")

from vq_kernels.backends import get_backend


@pytest.fixture(autouse=True)
def _available() -> None:
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_last_codes_of_a_large_codebook_are_prepared(precision: str, device: torch.device) -> None:
    """5,000 is no multiple of what a program prepares."""
    codebook = torch.randn(5_000, 8, device=device)
    x = codebook[-9:][None].clone()
    got = get_backend("triton").nearest_code(x, codebook, "l2", precision)
    assert torch.equal(got, torch.arange(4_991, 5_000, device=device)[None])


@pytest.mark.parametrize("k", [1, 129, 4096, 32_768, 32_769, 40_000, 50_176, 65_536, 100_000, 1_000_001])
def test_programs_share_all_padded_codes(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vq_kernels.backends.triton import prepare
    from vq_kernels.backends.triton.plan import make_plan

    seen: dict[str, int] = {}

    class Recorder:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *args, **constants: seen.update(programs=grid[0], codes=constants["BLOCK_CODES"])

    monkeypatch.setattr(prepare, "prepare_kernel", Recorder())
    monkeypatch.setattr(prepare, "exclude_duplicates", lambda codebook, prepared, *_: prepared)
    nothing = torch.empty(0, dtype=torch.int64)
    prepared = prepare.prepare(
        torch.empty(k, 2), 16, make_plan(torch.float32, torch.float32, "l2", "high"),
        counters=nothing, counts=nothing,
    )  # fmt: skip
    assert seen["programs"] * seen["codes"] == len(prepared.high) >= k
    assert len(prepared.extremes) == seen["programs"]
    assert seen["codes"] <= prepare.MOST_CODES


@pytest.mark.parametrize("dim", [64, 512])
def test_the_search_is_launched_as_it_was_tuned(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from vq_kernels.backends.triton import nearest

    seen: dict[str, Any] = {}

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: seen.update(options)

    monkeypatch.setattr(nearest, "search_kernel", Recorder())
    monkeypatch.setattr(nearest.common, "architecture", lambda device: 90)
    monkeypatch.setattr(nearest, "prepare", lambda codebook, depth, plan, **_: _empty_codebook(depth))
    indices = torch.empty(1, 9, dtype=torch.int64)
    config = nearest.search(
        torch.empty(1, 9, dim), torch.empty(256, dim), None, "l2", "exact", indices=indices
    ).config
    assert seen["num_stages"] == seen["config"].stages == config.stages
    assert seen["num_warps"] == config.warps
    assert not seen["WIDE"]


def _empty_codebook(depth: int) -> Any:
    from vq_kernels.backends.triton.codes import Prepared

    parts = torch.empty(256, depth, dtype=torch.float16)
    return Prepared(parts, parts, parts, *(torch.empty(256, 8) for _ in range(3)), *(torch.empty(0),) * 2)


def test_programs_end_at_about_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what all multiprocessors could do, the search uses two thirds at least, from half a wave on."""
    from vq_kernels.backends.triton import nearest
    from vq_kernels.backends.triton.plan import make_config, make_plan

    monkeypatch.setattr(nearest.common, "multiprocessors", lambda device: 132)
    config = make_config(90, make_plan(torch.float32, torch.float32, "l2", "fast"), 64)
    padded_k, places = 16_384, 264
    code_tiles = padded_k // config.codes
    for rows in range(17_000, 300_000, 997):
        splits = nearest.count_splits(rows, padded_k, config, torch.device("cpu"))
        tiles = -(-rows // config.rows)
        steps = -(-tiles * splits // places) * -(-code_tiles // splits)
        assert tiles * code_tiles >= 0.66 * steps * places, (rows, splits)


def test_batch_sizes_share_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into how many shares the codes are divided is a number of the launch, not of the kernel."""
    from vq_kernels.backends.triton import nearest

    seen: list[dict[str, Any]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **constants: seen.append(constants | {"grid": grid})

    monkeypatch.setattr(nearest, "search_kernel", Recorder())
    monkeypatch.setattr(nearest.common, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(nearest, "prepare", lambda codebook, depth, plan, **_: _empty_codebook(depth))
    for rows in (1, 100, 3000):
        indices = torch.empty(1, rows, dtype=torch.int64)
        nearest.search(
            torch.empty(1, rows, 16), torch.empty(16_384, 16), None, "l2", "exact", indices=indices
        )
    grids = [launch.pop("grid") for launch in seen]
    assert len({grid[1] for grid in grids}) > 1
    assert all(launch == seen[0] for launch in seen)


@pytest.mark.parametrize("dim", [12, 300], ids=["resident", "read_anew"])
def test_offsets_of_64_bits_find_the_same(
    dim: int, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    from vq_kernels.backends.triton import nearest

    monkeypatch.setattr(nearest, "WIDE_CODEBOOK", 0)
    x, codebook = torch.randn(1, 70, dim, device=device), torch.randn(300, dim, device=device)
    for precision in ("exact", "fast"):
        got = get_backend("triton").nearest_code(x, codebook, "l2", precision)
        check_found(got[0], x[0], codebook, precision)


def kernels() -> dict[str, Any]:
    """Every function with Triton's decorator: kernels by name, launched ones end in ``_kernel``."""
    from vq_kernels.backends import triton as package

    modules = [
        importlib.import_module(f"{package.__name__}.{m.name}")
        for m in pkgutil.iter_modules(package.__path__)
    ]
    return {
        name: value.fn
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "fn")
    }


def test_no_kernel_takes_more_than_25_parameters() -> None:
    counts = {name: len(inspect.signature(kernel).parameters) for name, kernel in kernels().items()}
    assert len(counts) >= 10
    assert {name: count for name, count in counts.items() if count > 25} == {}


def test_every_launch_says_whether_multiply_and_add_are_fused() -> None:
    """Triton's default changes between versions."""
    from vq_kernels.backends import triton as package

    for path in Path(package.__file__).parent.glob("*.py"):
        source = path.read_text()
        assert len(re.findall(r"_kernel\[", source)) == source.count("enable_fp_fusion=False"), path.name
