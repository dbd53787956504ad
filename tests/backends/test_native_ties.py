"""Rows with many codes that float64 leaves open, which whole numbers settle where they can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from native_support import PATHS, nearest_code_with_bound, use_path
from support import exact_codes, rational_argmin
from torch import Tensor

from vq_kernels.backends import native

PACKED = [name for name in PATHS if "direct" not in name]


@pytest.fixture(params=PACKED)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_path(request.param, monkeypatch)


def _permutations(k: int = 96, d: int = 6) -> tuple[Tensor, Tensor]:
    """Every code is equally near to every row, but not by a rounded sum."""
    codebook = torch.randn(d).expand(k, d).gather(1, torch.rand(k, d).argsort(1))
    return torch.randn(40, 1).expand(40, d).clone(), codebook


def _beyond_float64() -> tuple[Tensor, Tensor]:
    """A large common product, and differences 2^-60 of it."""
    x, codebook = torch.randn(40, 5), torch.ones(96, 5) * 2.0**20
    x[:, 0] = 2.0**20 * torch.randint(1, 9, (40,))
    x[:, 1] = 2.0**-10 * torch.randint(1, 9, (40,))
    codebook[:, 1] = 2.0**-12 * torch.randint(-99, 99, (96,))
    return x, codebook


def _finer_rows() -> tuple[Tensor, Tensor]:
    """The last bit of products is far below that of |e|^2 / 2."""
    x, codebook = _permutations()
    x[:, 0] += 2.0**-40 * torch.randint(-9, 9, (40,))
    return x * 2.0**-30, (codebook * 8).round()


def _coarser_rows() -> tuple[Tensor, Tensor]:
    x, codebook = _permutations()
    return (x * 4).round() * 2.0**9, codebook


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "permutations": _permutations,
    "beyond_float64": _beyond_float64,
    "finer_rows": _finer_rows,
    "coarser_rows": _coarser_rows,
}


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("case", CASES)
def test_many_ties_equal_rational_arithmetic(path: str, case: str, metric: str) -> None:
    x, codebook = CASES[case]()
    assert torch.equal(
        native.nearest_code(x[None], codebook, metric, "exact")[0], rational_argmin(x, codebook, metric)
    )


def test_the_bound_of_float64_scans_is_needed(path: str) -> None:
    x, codebook = _permutations(d=16)
    truth = rational_argmin(x, codebook, "cosine")
    assert torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 1.0)[0], truth)
    assert not torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 2.0**-10)[0], truth)


def _spanning(bits: int) -> tuple[Tensor, Tensor]:
    """Products of 1 down to a span of so many bits, beside one that is common to all codes."""
    x, codebook = torch.ones(20, 3), torch.ones(96, 3)
    x[:, 0] = codebook[:, 0] = 2.0 ** (bits // 2)
    codebook[:, 1] = 1.0 + 2.0**-20
    x[:, 2] = 2.0 ** -(bits // 4)
    codebook[:, 2] = torch.arange(96) * 2.0 ** -(bits // 4)
    return x, codebook


@pytest.mark.parametrize("bits", range(20, 122, 10))
def test_terms_of_any_span(path: str, bits: int) -> None:
    """The contract's score is the real one up to a span of about 2^100, and decides beyond as well."""
    x, codebook = _spanning(bits)
    got = native.nearest_code(x[None], codebook, "cosine", "exact")
    assert torch.equal(got, exact_codes(x[None], codebook, "cosine"))
    if bits <= 60:
        assert torch.equal(got[0], rational_argmin(x, codebook, "cosine"))


def test_whole_numbers_decide_only_where_the_score_is_exact(path: str) -> None:
    """What the contract's sum of two float64 values loses, whole numbers would see."""
    x, codebook = _spanning(120)
    truth = rational_argmin(x, codebook, "cosine")
    contract = exact_codes(x[None], codebook, "cosine")
    assert not torch.equal(contract[0], truth)
    assert torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 1.0), contract)
    assert torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 2.0**-90)[0], truth)


def test_words_are_as_wide_as_differences_may_be(path: str) -> None:
    """Scores 2^40 units apart, which float64 does not see: 32 bits would wrap around."""
    x, codebook = torch.ones(20, 3), torch.zeros(96, 3)
    x[:, :2] = 2.0**20
    codebook[::2, 0] = codebook[1::2, 1] = 2.0**20  # no centre is near all of them
    x[:, 2] = 2.0**-30 * torch.randint(2**22, 2**23, (20,))
    codebook[:, 2] = 2.0**-30 * torch.randint(2**17, (96,))
    truth = rational_argmin(x, codebook, "cosine")
    assert torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 1.0)[0], truth)
    assert not torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 2.0**-25)[0], truth)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("d", [1, 3, 7, 8, 9, 15, 17, 24, 100])
def test_lists_of_near_copies(path: str, d: int, metric: str) -> None:
    """Codes a last bit apart are scored several at once, whatever is left of their dimensions."""
    codebook = torch.randn(40, d).repeat_interleave(30, 0)
    codebook *= 1 + 2.0**-22 * torch.randint(-2, 3, codebook.shape)
    x = torch.randn(1, 150, d) + 3.0
    want = exact_codes(x, codebook, metric)
    assert torch.equal(native.nearest_code(x, codebook, metric, "exact"), want)
    some = rational_argmin(x[0, :6], codebook, metric)
    assert torch.equal(want[0, :6], some)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("group", [4, 12, 40])
def test_lists_of_ties_that_float64_does_not_see(path: str, group: int, metric: str) -> None:
    """Permutations of some codes among others: equally near to a row of one value, not by a rounded sum."""
    d = 32
    few = torch.randn(480 // group, d) + torch.randn(480 // group, 1)
    codebook = few.repeat_interleave(group, 0)
    codebook = codebook.gather(1, torch.rand(codebook.shape).argsort(1))[torch.randperm(480)]
    x = few.mean(1)[torch.randint(len(few), (150,)), None].expand(150, d)
    truth = rational_argmin(x, codebook, metric)
    assert torch.equal(native.nearest_code(x[None], codebook, metric, "exact")[0], truth)


def test_more_open_rows_than_are_remembered(path: str) -> None:
    """Rows that return after others, beside rows that are met once and rows that are not finite."""
    x, codebook = _permutations(d=16)
    rows = torch.cat([x, x[:1], x.flip(0), x[:1], torch.randn(9, 16), x, x[3:4]]).repeat(20, 1)
    rows[::7, 3] = torch.nan
    want = exact_codes(rows[None], codebook)
    assert torch.equal(native.nearest_code(rows[None], codebook, "l2", "exact"), want)
