"""Few rows in the Triton search: exact scores with all codes, of all rows or of those that were left open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import DTYPES, LAYOUTS, exact_codes
from torch import Tensor

pytest.importorskip("triton")

import vq_kernels as vq
from vq_kernels.backends import get_backend


@pytest.fixture(autouse=True)
def _available() -> None:
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")


@pytest.fixture(params=["whole", "open rows"])
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel as the whole search, or as the last pass, whatever the sizes."""
    from vq_kernels.backends.triton import few

    most = 1 << 40
    monkeypatch.setattr(few, "limits", lambda architecture: (most * (request.param == "whole"), most))
    name: str = request.param
    return name


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each launch of the kernel."""
    from vq_kernels.backends.triton import few

    launched: list[int] = []
    launch = few.launch

    def count(x: Tensor, *args: Any, **options: Any) -> None:
        launched.append(x.shape[0] * x.shape[1])
        launch(x, *args, **options)

    monkeypatch.setattr(few, "launch", count)
    return launched


def nearest(x: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    return get_backend("triton").nearest_code(x, codebook, metric, "exact")


def truth(x: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    return exact_codes(x, codebook, metric)


SHAPES = [(1, 1, 1), (1, 3, 5), (7, 16, 128), (4, 36, 129), (5, 50, 300), (3, 7, 900)]  # N, D, K


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_finds_the_exact_code(
    shape: tuple[int, int, int], metric: str, few_rows: str, launches: list[int], device: torch.device
) -> None:
    n, d, k = shape
    codebook = torch.randn(k, d, device=device)
    x = torch.randn(1, n, d, device=device)
    assert torch.equal(nearest(x, codebook, metric), truth(x, codebook, metric))
    assert launches == [n]


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
def test_ties_copies_and_numbers_that_are_not_finite(
    dtype: torch.dtype, few_rows: str, launches: list[int], device: torch.device
) -> None:
    codebook = torch.randn(300, 20, device=device).to(dtype)
    codebook[200:260] = codebook[20:80]  # in another block
    codebook[90:100] = -codebook[80:90]  # as far from zero
    codebook[3], codebook[5, 1], codebook[7, 2] = torch.inf, torch.nan, -torch.inf
    x = torch.randn(1, 31, 20, device=device).to(dtype)
    x[0, 2], x[0, 4, 1], x[0, 6] = codebook[250], torch.nan, 0
    x[0, 30] = torch.inf
    want = truth(x, codebook)
    assert torch.equal(nearest(x, codebook), want)
    assert (want[0, 2], want[0, 4], want[0, 30]) == (70, 0, 0)
    assert launches


def test_scores_that_one_float64_does_not_tell_apart(few_rows: str, device: torch.device) -> None:
    """-1/2 and -1/2 - 2^-81: what rounding has left of the sum decides, in this block and in another."""
    codebook = torch.zeros(300, 24, device=device)
    codebook[:, 3] = 1
    codebook[200:210, 5] = 1  # so that 2^-40 is nothing beside their spread
    codebook[150, 20] = 2.0**-40
    x = codebook[150].repeat(1, 3, 1)
    assert nearest(x, codebook).tolist() == [[150, 150, 150]] == truth(x, codebook).tolist()
    x[..., 20] = 0
    assert nearest(x, codebook).tolist() == [[0, 0, 0]]


def test_codes_without_a_finite_one(few_rows: str, device: torch.device) -> None:
    codebook = torch.full((140, 8), torch.nan, device=device)
    x = torch.randn(1, 3, 8, device=device)
    assert nearest(x, codebook).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("layout", ["rows", "channel_first_2d", "every_other_row", "expanded"])
def test_quantizes_by_its_indices(
    layout: str, few_rows: str, launches: list[int], device: torch.device
) -> None:
    """Strides of all layouts, masked rows, the loss; with statistics a first pass finds the range of x."""
    channel_dim, build = LAYOUTS[layout]
    x, codebook = build(1, 9, 8, torch.float32).to(device), torch.randn(150, 8, device=device)
    mask = torch.rand(vq.nearest_code(x, codebook, channel_dim=channel_dim).shape, device=device) < 0.8
    for options in ({"statistics": False}, {"statistics": False, "mask": mask}, {"mask": mask}):
        got = vq.vector_quantize(x, codebook, channel_dim=channel_dim, backend="triton", **options)
        want = vq.vector_quantize(x, codebook, channel_dim=channel_dim, backend="reference", **options)
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.quantized, want.quantized)
        torch.testing.assert_close(got.loss, want.loss)
    assert launches


def test_limits() -> None:
    """Float64 arithmetic is slow on the GPUs whose compute capability ends in 6 or 9, or is 12.0."""
    from vq_kernels.backends.triton.few import limits

    assert limits(0) == (0, 0)
    for name in (80, 90, 100):
        assert limits(name)[0] == 32 * limits(86)[0] == 32 * limits(89)[0] == 32 * limits(120)[0]


@pytest.mark.parametrize(
    ("rows", "shape", "whole", "last"),
    [
        (1, (1024, 128), True, True),
        (128, (1024, 128), True, True),
        (129, (1024, 128), False, True),
        (4096, (64, 4), True, True),
        (4097, (64, 4), False, False),
        (4096, (8192, 32), False, True),
        (4096, (8192, 33), False, False),
        (1, (1 << 17, 8), True, True),
        (1, ((1 << 17) + 1, 8), False, False),
    ],
)
def test_which_searches_it_takes(
    rows: int, shape: tuple[int, int], whole: bool, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vq_kernels.backends.triton import common, few

    monkeypatch.setattr(common, "architecture", lambda device: 90)
    codebook = torch.empty(shape, device="meta")
    assert few.takes_search(rows, codebook) is whole
    assert few.takes_open_rows(rows, codebook) is last
