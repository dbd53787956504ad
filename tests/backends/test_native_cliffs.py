"""Rows and codes that make a first pass give up: what takes over, and what it must not leave out."""

from __future__ import annotations

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


def _check(x: Tensor, codebook: Tensor, metric: str, rational: int = 16) -> None:
    """Indices of all rows by the contract, of some by rational arithmetic."""
    got = native.nearest_code(x[None], codebook, metric, "exact")[0]
    assert torch.equal(got, exact_codes(x[None], codebook, metric)[0])
    some = torch.arange(0, len(x), -(-len(x) // rational))
    assert torch.equal(got[some], rational_argmin(x[some], codebook, metric))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 9, 33])
def test_rows_of_one_value(path: str, d: int, metric: str) -> None:
    """A code is its length and the sum of its values to them: permutations tie, their neighbours do not."""
    few = torch.randn(3, d)
    codebook = few[torch.arange(150) % 3].gather(1, torch.rand(150, d).argsort(1))
    codebook[::7, 0] += 2.0**-24 * torch.randint(-9, 10, (22,))  # less than a float's last bit of the sum
    x = torch.randn(300, 1).expand(300, d).clone()
    x[::5] = torch.randn(60, d)
    x[1::5] *= 1e-30
    x[2] = 0.0
    _check(x, codebook, metric)


def test_sums_of_values_beyond_floats(path: str) -> None:
    """Rows of one value take the long way where a sum of a code is not a float."""
    codebook = torch.full((140, 9), 3e38) * (1 - torch.rand(140, 1) * 2.0**-20)
    codebook[::2] *= -1.0
    _check(torch.full((60, 9), 1.5) * torch.arange(-30, 30)[:, None], codebook, "cosine")


def _clusters(k: int, d: int, shift: float, width: float) -> tuple[Tensor, Tensor]:
    centres = shift * torch.randn(5, d)
    codebook = centres[torch.randint(5, (k,))] + width * torch.randn(k, d)
    x = centres[torch.randint(5, (700,))] + width * torch.randn(700, d)
    x[::50] = centres.mean(0) + shift * torch.randn(14, d)  # between them
    return x, codebook


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("width", [1e-4, 1.0])
@pytest.mark.parametrize(("k", "d"), [(130, 5), (700, 24)])
def test_clusters_far_apart(path: str, k: int, d: int, width: float, metric: str) -> None:
    """Rows are compared with the regions of the codebook alone that may hold their nearest code."""
    x, codebook = _clusters(k, d, 300.0, width)
    codebook[4] = codebook[5]
    _check(x, codebook, metric)


def test_a_code_at_the_rim_of_its_region(path: str) -> None:
    """Clusters along a line, every second one with two ends: rows between them are nearest to the end of
    one, whose centre is farther than all of the other."""
    place = 100.0 * torch.arange(4).repeat_interleave(32)
    place[:16] -= 10.0
    place[16:32] += 10.0
    place[64:80] -= 10.0
    place[80:96] += 10.0
    codebook = 1e-5 * torch.randn(128, 16)
    codebook[:, 0] += place
    x = torch.zeros(400, 16)
    x[:, 0] = torch.linspace(40.0, 60.0, 400) + 200.0 * torch.randint(2, (400,))
    x[:, 1] = torch.randn(400)
    _check(x, codebook, "l2", rational=60)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e18, 1e36])
def test_differences_of_any_magnitude(path: str, scale: float) -> None:
    """Squares of such values vanish or overflow unless rows and codes are scaled."""
    x, codebook = _clusters(300, 12, 1e3, 1.0)
    _check(x * (scale / 1e3), codebook * (scale / 1e3), "l2")


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_cosine_of_codes_that_are_all_alike(path: str, offset: float) -> None:
    """A vector that all codes share changes no order, and is taken off for every pass."""
    codebook = offset + torch.randn(1, 24) + 1e-5 * torch.randn(400, 24)
    _check(torch.randn(300, 24), codebook, "cosine")


def test_cosine_of_codes_that_are_all_alike_needs_its_bound(path: str) -> None:
    codebook = 16.0 + torch.randn(400, 24)
    x = torch.randn(300, 24)
    best = (x @ (codebook - 16.0).T).topk(2).indices
    apart = codebook[best[:, 0]] - codebook[best[:, 1]]
    x = x - apart * ((x * apart).sum(1) / apart.square().sum(1))[:, None]  # both are as near but for rounding
    want = exact_codes(x[None], codebook, "cosine")
    assert torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 1.0), want)
    assert not torch.equal(nearest_code_with_bound(x[None], codebook, "cosine", 0.0), want)


@pytest.mark.parametrize("length", [1e14, 1e18, 3e18, 1e19, 1e25])
def test_rows_much_longer_than_codes(path: str, length: float) -> None:
    """Up to 2^63 times as long as an ordinary code they have a bound, unless a code is left out."""
    codebook = torch.nn.functional.normalize(torch.randn(600, 32), dim=1)
    x = torch.randn(400, 32) * length
    _check(x, codebook, "l2")
    codebook[9] *= 1e17
    _check(x, codebook, "l2")
    _check(x, codebook, "cosine")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("group", [3, 12, 40])
@pytest.mark.parametrize(("k", "d"), [(64, 5), (64, 70), (300, 16)])
def test_lists_of_ties(path: str, k: int, d: int, group: int, metric: str) -> None:
    """Few codes that tie for each of many rows: error-free sums, or whole numbers for all together."""
    few = torch.randn(-(-k // group), d)
    codebook = few.repeat_interleave(group, 0)[:k]
    signs = 2.0 * torch.randint(2, (k, 1)) - 1.0
    codebook[:, -1:] *= signs  # mirrored codes, of which each row has as many nearest ones
    x = few[torch.randint(len(few), (300,))] + 0.1 * torch.randn(300, d)
    x[:, -1] = 0.0
    codebook = codebook + 2.0**-22 * torch.randint(-1, 2, (k, d)) * (torch.arange(d) < 2)
    codebook[:, -1] = 2.0**-30 * torch.randint(1, 9, (k,)) * signs[:, 0]  # less in |e|^2 than float64 sees
    _check(x, codebook, metric)
