"""The sweep of the narrow passes: what shared bounds and numbers in last bits must not hide."""

from __future__ import annotations

import pytest
import torch
from native_support import PATHS, nearest_code_with_bound, use_path
from support import exact_codes, rational_argmin

from vq_kernels.backends import native

NARROW = [path for path, (isa, first) in PATHS.items() if first in ("int8", "int16") or isa == "avx512bf16"]
# The largest integer of a value of 500 dimensions: 500 squares of it are below 2^31.
LEVELS = {"int8": 127, "avx2 int8": 63, "avx2 int16": 2072}


@pytest.fixture(params=NARROW)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_path(request.param, monkeypatch)


def test_rows_of_two_lengths_have_bounds_of_their_own(path: str) -> None:
    """Residuals point the same way, of long rows in a tile with others that are nine sixteenths as long."""
    d = 500
    levels = LEVELS.get(path, LEVELS.get(PATHS[path][1]))
    step = 2.0**-7
    # Code 0 loses half a step in every value and code 8 gains one: by integers of the largest value's scale.
    lower, upper = (20.4995, 20.5005) if levels else (128.4995, 128.5005)
    codebook = torch.zeros(16, d)
    codebook[:, 0] = torch.arange(1, 17) * 2.0**-16
    codebook[0], codebook[8] = lower * step, upper * step
    codebook[[0, 8], 0] = torch.tensor([levels, levels] if levels else [129, 128]) * step
    if levels:
        codebook[8, 1] -= step
    codebook = torch.cat([codebook, -codebook])  # whose centre is zero
    x = torch.ones(1, 48, d)
    x[:, ::2] *= 0.5625
    assert rational_argmin(x[0, :1], codebook, "cosine") == 0
    assert (native.nearest_code(x, codebook, "cosine", "exact") == 0).all()
    tight = nearest_code_with_bound(x, codebook, "cosine", 0.98)
    assert (tight[:, 1::2] == 8).all()


@pytest.mark.parametrize("best", [100, 600])
def test_the_bound_of_a_group_does_not_raise_the_limit(path: str, best: int) -> None:
    """Code 0 gains as much in every value as its bound allows; the best code is in another group, met
    before or after it, and no code there loses anything."""
    d = 500
    levels = LEVELS.get(path, LEVELS.get(PATHS[path][1]))
    whole = 20 if levels else 128
    codebook = torch.full((1024, d), whole + 0.26)
    codebook[:, 299] -= torch.arange(1024) / 64  # no copies
    codebook[0] = whole + 0.5005
    first = best // 8 * 8
    codebook[first : first + 8] = whole
    codebook[first : first + 8, 300:308] -= torch.eye(8)
    codebook[best] = whole
    codebook[best, 1:291] += 1  # 40 more than code 0 in all
    codebook[:, 0] = levels or whole
    x = torch.ones(1, 48, d)
    x[:, ::2] *= 0.5625
    assert rational_argmin(x[0, :1], codebook, "cosine") == best
    assert (native.nearest_code(x, codebook, "cosine", "exact") == best).all()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_codes_of_one_group_lie_anywhere(path: str, metric: str) -> None:
    """Six codes beside each row have equal scores and largest values of their own, by which the sweep orders
    codes: the first of them wins."""
    k, d = 600, 24
    sides = torch.tensor([[25.0, 0], [-24, 7], [20, 15], [15, -20], [-7, 24], [0, -25]])
    rows = torch.zeros(k // 6, d)
    rows[:, 2:] = torch.randint(-19, 20, (k // 6, d - 2)).float()
    codebook = rows.repeat_interleave(6, 0)
    codebook[:, :2] = sides.repeat(k // 6, 1)
    codebook = codebook[torch.randperm(k)]
    for scale in (1.0, 2.0**-40):
        x, codes = rows[None] * scale, codebook * scale
        truth = exact_codes(x, codes, metric)
        assert torch.equal(native.nearest_code(x, codes, metric, "exact"), truth)


def test_codes_of_all_sizes(path: str) -> None:
    """From group to group the scale doubles and more, so that groups have places without a code."""
    codebook = torch.randn(300, 24) * 2.0 ** torch.randint(-20, 21, (300, 1))
    x = (codebook[::2] + codebook[1::2])[None] / 2
    found = native.nearest_code(x, codebook, "l2", "exact")
    assert torch.equal(found, exact_codes(x, codebook))


@pytest.mark.parametrize("best", [0, 5])
def test_the_number_of_a_group_does_not_decide(path: str, best: int) -> None:
    """Whole numbers, which int8 holds as they are: bounds below the 63 steps by which the number of a group
    may change a value. The best code is in the first group, its rival, behind by one, in the last one."""
    top = 63 if path == "avx2 int8" else 127
    for d in range(33, 65):
        codebook = -torch.randint(1, top // 2, (512, d)).float()
        codebook[:, 0] = top
        codebook[[best, 511 - best]] = top
        codebook[511 - best, -1] = top - 1
        x = torch.full((1, 48, d), float(top))
        x[..., -1] = 1
        assert rational_argmin(x[0, :1], codebook, "cosine") == best
        assert (native.nearest_code(x, codebook, "cosine", "exact") == best).all(), d


@pytest.mark.parametrize("d", [31, 32, 33, 64, 127, 500, 2048])
def test_the_largest_sums_stay_in_range(path: str, d: int) -> None:
    """All values are the largest of their row and code, of one sign: no sum of products can be longer."""
    signs = torch.ones(40, d)
    signs[torch.arange(1, 40), torch.arange(39) % d] = -1.0
    codebook = torch.cat([signs, -signs])
    x = torch.cat([torch.ones(1, 30, d), -torch.ones(1, 30, d)], 1)
    want = torch.tensor([0] * 30 + [40] * 30)
    assert torch.equal(native.nearest_code(x, codebook, "cosine", "exact")[0], want)


@pytest.mark.parametrize("k", [70, 512, 600, 1300])
def test_open_codes_wherever_they_are(path: str, k: int) -> None:
    """Rows half way between two codes or among five, which lie in one group, in one run of groups, in runs
    and chunks of their own."""
    d = 24
    codebook = torch.randn(k, d)
    rows = []
    for stride in (1, 3, 8, 9, 64, 65, 500):
        for first in range(0, k, max(1, k // 20)):
            near = [(first + i * stride) % k for i in range(5)]
            rows.append(codebook[near[:2]].mean(0))
            rows.append(codebook[near].mean(0))
    x = torch.stack(rows)[None]
    for scale in (1.0, 0.3):  # all of one length, and of many
        x = x * torch.where(torch.arange(x.shape[1]) % 7 == 0, scale, 1.0)[:, None]
        assert torch.equal(
            native.nearest_code(x, codebook, "l2", "exact"),
            exact_codes(x, codebook),
        )
