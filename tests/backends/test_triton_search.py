"""The Triton search at the tile sizes of a GPU: ties, tiny numbers, equal codes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support import check_found, exact_codes
from torch import Tensor

pytest.importorskip("triton")

from vq_kernels.backends import QuantizeOptions, get_backend


@pytest.fixture(autouse=True)
def _available() -> None:
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")


@pytest.fixture
def hopper_tiles(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """The tile sizes of compute capability 9.0 in the interpreter, whose own are smaller."""
    if device.type == "cpu":
        from vq_kernels.backends.triton import common, few

        monkeypatch.setattr(common, "architecture", lambda device: 90)
        # Which would take the whole search there, and leave no tile to any other.
        monkeypatch.setattr(few, "limits", lambda architecture: (0, 0))


def nearest(x: Tensor, codebook: Tensor, precision: str) -> Tensor:
    return get_backend("triton").nearest_code(x[None], codebook, "l2", precision)[0]


def truth(x: Tensor, codebook: Tensor) -> Tensor:
    return exact_codes(x[None], codebook)[0]


@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
@pytest.mark.parametrize("scale", [1.0, 0.2], ids=["far", "near"])
@pytest.mark.parametrize(("k", "apart"), [(128, 64), (640, 320)], ids=["one_tile", "several_tiles"])
def test_copies_of_codes_are_not_chosen(
    k: int, apart: int, scale: float, precision: str, hopper_tiles: None, device: torch.device
) -> None:
    """Scores of either sign, copies in the same tile of 128 codes and in a later one."""
    codebook = torch.randn(k, 12, device=device)
    codebook[apart:] = codebook[:-apart].clone()
    x = scale * torch.randn(300, 12, device=device)
    check_found(nearest(x, codebook, precision), x, codebook, precision, apart)


@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
def test_of_equal_scores_the_earlier_tile_wins(
    precision: str, hopper_tiles: None, device: torch.device
) -> None:
    """Codes that are mirrored, not equal: as far from rows on the mirror, whatever their columns."""
    codebook = torch.randn(640, 12, device=device)
    codebook[320:] = codebook[:320]
    codebook[320:, 0] *= -1
    x = 0.2 * torch.randn(200, 12, device=device)
    x[:, 0] = 0.0
    check_found(nearest(x, codebook, precision), x, codebook, precision, 320)


@pytest.mark.parametrize("precision", ["exact", "high"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def test_tiny_numbers(dtype: torch.dtype, precision: str, device: torch.device) -> None:
    """Scores of 1e-40, subnormal where they are not scaled."""
    codebook = (1e-20 * torch.randn(100, 16, device=device)).to(dtype)
    x = (1e-20 * torch.randn(100, 16, device=device)).to(dtype)
    assert torch.equal(nearest(x, codebook, precision), truth(x, codebook))


# --- equal codes and the second pass ----------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Counter[tuple[str, int]]:
    """Loads that each program of each kernel makes, in the interpreter: its steps, up to a factor."""
    if device.type != "cpu":
        pytest.skip("counts what the interpreter does")
    from triton.runtime import interpreter

    counted: Counter[tuple[str, int]] = Counter()
    kernel = [""]
    run, load = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_masked_load

    def named(self: Any, *args: Any, **options: Any) -> Any:
        kernel[0] = self.fn.__name__
        return run(self, *args, **options)

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        counted[kernel[0], self.grid_idx[0]] += 1
        return load(self, *args, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", named)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counting)
    return counted


def longest(counted: Counter[tuple[str, int]], kernel: str) -> int:
    return max((count for (name, _), count in counted.items() if name == kernel), default=0)


USUAL: dict[int, int] = {}  # steps of distinct codes by D: the same codes and rows in every case


@pytest.mark.parametrize("case", ["zeros", "collapsed", "nine_copies", "last_half"])
@pytest.mark.parametrize("dim", [8, 130], ids=["small", "large"])
def test_equal_codes_cost_no_more_than_others(
    case: str, dim: int, steps: Counter[tuple[str, int]], device: torch.device
) -> None:
    """At most twice the steps of distinct codes, for small codebooks and for those with a hash table."""
    distinct = torch.randn(270, dim, device=device)
    codebook = distinct.clone()
    if case == "zeros":
        codebook.zero_()
        codebook[1::2] *= -1.0  # both zeros
    elif case == "collapsed":
        codebook[:] = codebook[3].clone()
    elif case == "nine_copies":
        codebook[::30] = codebook[7].clone()
    else:
        codebook[135:] = codebook[:135].clone()
    x = torch.randn(100, dim, device=device)

    def taken() -> int:
        return sum(longest(steps, name) for name in ("search_kernel", "resolve_kernel"))

    if dim not in USUAL:
        nearest(x, distinct, "exact")
        USUAL[dim] = taken()
        steps.clear()
    assert torch.equal(nearest(x, codebook, "exact"), truth(x, codebook))
    assert 0 < taken() <= 2 * USUAL[dim]


def test_an_open_row_is_shared_by_all_programs(
    monkeypatch: pytest.MonkeyPatch, steps: Counter[tuple[str, int]], device: torch.device
) -> None:
    """One row between two codes: every program scores a piece of the codes, four tiles of them."""
    from vq_kernels.backends.triton import common

    monkeypatch.setattr(common, "multiprocessors", lambda device: 4)
    codebook = torch.randn(2048, 4, device=device) + 40.0
    codebook[100], codebook[1900] = torch.tensor([0.0, 1, 2, 3]), torch.tensor([3.0, 2, 1, 0])
    x = torch.full((1, 4), 1.5, device=device)
    assert nearest(x, codebook, "exact").item() == 100
    tiles = {program for kernel, program in steps if kernel == "resolve_kernel"}
    assert len(tiles) == 8
    # A tile of codes takes a bias and at most three loads of parts, twice; 2048 codes are 32 tiles.
    assert longest(steps, "resolve_kernel") < 32 * 3


def test_rows_without_a_bound_are_shared_too(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """A row that only float64 can score, and codes in the last bits of each other, in several pieces."""
    if device.type == "cpu":
        from vq_kernels.backends.triton import common

        monkeypatch.setattr(common, "multiprocessors", lambda device: 4)
    codebook = torch.randn(1024, 4, device=device)
    codebook[200:900] = codebook[5] * (1 + 2.0**-23 * torch.arange(700, device=device)[:, None] / 64)
    x = torch.cat([3e37 * torch.randn(2, 4, device=device), codebook[[5, 300, 899]]])
    assert torch.equal(nearest(x, codebook, "exact"), truth(x, codebook))


def test_the_loss_is_weighted_by_the_last_kernel(device: torch.device) -> None:
    from vq_kernels.backends.triton.quantize import vector_quantize

    x, codebook = torch.randn(1, 50, 4, device=device), torch.randn(9, 4, device=device)
    losses = [
        vector_quantize(
            x,
            codebook,
            None,
            QuantizeOptions("l2", "exact", -1, False, False, None, commitment_weight=weight),
            torch.empty_like(x),
            None,
        ).loss
        for weight in (1.0, 0.25)
    ]
    assert torch.equal(losses[1], losses[0] * 0.25)


# --- the middle pass ----------------------------------------------------------------------------------


def test_a_middle_pass_takes_the_open_rows_of_a_large_codebook(
    monkeypatch: pytest.MonkeyPatch, steps: Counter[tuple[str, int]], device: torch.device
) -> None:
    """Many open rows cost the last pass what they cost without the middle one, or less than half of that."""
    from vq_kernels.backends.triton import nearest as search

    codebook = torch.randn(520, 64, device=device)
    codebook[260:] = codebook[:260] + 1e-3 * torch.randn(260, 64, device=device)  # one product leaves them
    codebook[520 - 7 :] = codebook[7:14] + 1e-7 * torch.randn(7, 64, device=device)  # and three products
    x = torch.randn(300, 64, device=device)
    want = truth(x, codebook)
    assert torch.equal(nearest(x, codebook, "exact"), want)
    middle = sum(count for (name, _), count in steps.items() if name == "resolve_kernel")
    steps.clear()
    monkeypatch.setattr(search, "MIDDLE_ROWS", 1000)
    assert torch.equal(nearest(x, codebook, "exact"), want)
    alone = sum(count for (name, _), count in steps.items() if name == "resolve_kernel")
    assert 0 < 2 * middle < alone


@pytest.mark.parametrize("rows", [63, 64, 150], ids=str)
def test_both_lists_are_complete(rows: int, device: torch.device) -> None:
    """From 64 open rows on there is a second list, in the interpreter; every row is in one of them."""
    codebook = torch.randn(700, 48, device=device)
    codebook[350:] = codebook[:350] + 1e-4 * torch.randn(350, 48, device=device)
    codebook[:20] = codebook[350:370].clone()
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, 48, device=device).to(dtype)
        assert torch.equal(nearest(x, codebook, "exact"), truth(x, codebook))
