"""The codebook's gradient is made of sums of x - e: nothing cancels where rows and codes are far from 0."""

from __future__ import annotations

import importlib

import pytest
import torch
from support import LAYOUTS, is_slow, rows_of
from torch import Tensor

import vq_kernels as vq
from vq_kernels.backends import QuantizeOptions, QuantizeResult
from vq_kernels.operators.quantize import vector_quantize

OPTIONS = QuantizeOptions("l2", "exact", -1, True, False, None, codebook_weight=1.0, sum_differences=True)


def true_differences(x: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    """float64 sums of x - e over the rows ``[N, D]`` of each code."""
    valid = indices >= 0
    rows, codes = x.double()[valid], codebook.double()[indices[valid]]
    sums = torch.zeros(codebook.shape, dtype=torch.float64, device=x.device)
    return sums.index_add_(0, indices[valid], rows - codes)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_codes_near_the_mean_of_their_rows_get_an_accurate_gradient(
    offset: float, backend: str, device: torch.device
) -> None:
    """As in late training: ``counts * e - sums`` in float32 is off by 1e-4, 4e-3 and 5e-2 of it."""
    rows = 1000 if is_slow(backend) else 10_000
    centers = 4 * torch.randn(4, 8, device=device)
    nearest = torch.randint(0, 4, (rows,), device=device)
    x = centers[nearest] + 0.1 * torch.randn(rows, 8, device=device) + offset
    means = torch.stack([x[nearest == k].double().mean(0) for k in range(4)])
    codebook = (means + 1e-3 * torch.randn_like(means)).float().requires_grad_()
    out = vq.vector_quantize(x, codebook, codebook_weight=1.0, backend=backend)
    assert torch.equal(out.indices, nearest)
    (got,) = torch.autograd.grad(out.loss, codebook)
    want = true_differences(x, codebook.detach(), out.indices) * (-2.0 / x.numel())
    assert (got - want).norm() <= 2e-5 * want.norm()


@pytest.mark.parametrize("layout", ["rows", "sliced_channels", "channel_first_2d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_sums_are_those_of_the_differences(
    layout: str, dtype: torch.dtype, masked: bool, backend: str, device: torch.device
) -> None:
    channel_dim, make = LAYOUTS[layout]
    b, m, d, k = (2, 9, 8, 17) if is_slow(backend) else (3, 700, 33, 63)
    x, codebook = make(b, m, d, dtype).to(device), torch.randn(k, d, device=device).to(dtype)
    mask = torch.rand(x.movedim(channel_dim, -1).shape[:-1], device=device) < 0.7 if masked else None
    options = OPTIONS._replace(channel_dim=channel_dim, backend=backend)
    got = vector_quantize(x, codebook, mask, options)
    plain = vector_quantize(x, codebook, mask, options._replace(sum_differences=False))
    for name in ("quantized", "indices", "loss", "valid_rows", "counts"):
        assert torch.equal(getattr(got, name), getattr(plain, name)), name
    want = true_differences(rows_of(x, channel_dim), codebook, got.indices.flatten())
    torch.testing.assert_close(got.sums.double(), want, rtol=1e-5, atol=1e-4)
    assert torch.equal(vector_quantize(x, codebook, mask, options).sums, got.sums)


def test_few_rows_have_the_same_sums(backend: str, device: torch.device) -> None:
    x, codebook = torch.randn(3, 8, device=device), torch.randn(5, 8, device=device)
    got = vector_quantize(x, codebook, None, OPTIONS._replace(backend=backend))
    torch.testing.assert_close(got.sums.double(), true_differences(x, codebook, got.indices))


def edge_case(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    x, codebook = torch.randn(70, 8, device=device), torch.randn(5, 8, device=device)
    if name == "nonfinite_rows":
        x[3, 2], x[11, 0] = float("nan"), float("inf")
    elif name == "nonfinite_codes":
        codebook[1, 2], codebook[3, 0] = float("nan"), float("-inf")
    elif name == "no_finite_code":
        codebook[:, 2], codebook[:, 5] = float("nan"), float("-inf")
    elif name == "codes_beyond_the_rows":
        codebook *= 1e6
    elif name == "codes_nearer_to_zero":
        codebook *= 1e-6
    elif name == "zero_rows":
        x.zero_()
    elif name == "an_outlier":
        x[5], codebook[2] = 1e7, 1e7 + 8
    return x, codebook


EDGES = (
    *("nonfinite_rows", "nonfinite_codes", "no_finite_code", "codes_beyond_the_rows"),
    *("codes_nearer_to_zero", "zero_rows", "an_outlier"),
)


@pytest.mark.parametrize("name", EDGES)
def test_edge_cases(name: str, backend: str, device: torch.device) -> None:
    """A non-finite row is left out; an entry of a code that is not finite counts as 0."""
    x, codebook = edge_case(name, device)
    got = vector_quantize(x, codebook, None, OPTIONS._replace(backend=backend))
    slots = torch.where(x.isfinite().all(1), got.indices, -1)
    finite = codebook.nan_to_num(0.0, 0.0, 0.0)
    want = true_differences(x.nan_to_num(), finite, slots)
    torch.testing.assert_close(got.sums.double(), want, rtol=1e-6, atol=1e-5)
    assert torch.equal(got.counts, torch.bincount(slots[slots >= 0], minlength=5))
    # What the public function gives beside the gradient are the sums of the rows, made of counts * e.
    given = vq.vector_quantize(x, codebook.requires_grad_(), codebook_weight=1.0, backend=backend)
    _, sums = vq.code_statistics(x, slots, 5, backend="reference")
    rounding = 1e-6 * (got.counts[:, None] * finite.abs()).max().item() + 1e-5
    torch.testing.assert_close(given.sums, sums, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("name", EDGES)
def test_sums_that_are_converted_by_a_launch_of_their_own(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large codebooks in Triton."""
    pytest.importorskip("triton")
    x, codebook = edge_case(name, device)
    options = OPTIONS._replace(backend="triton")
    want = vector_quantize(x, codebook, None, options)
    quantize = importlib.import_module("vq_kernels.backends.triton.quantize")
    monkeypatch.setattr(quantize, "CONVERTED_BY_ONE", 0)
    got: QuantizeResult = vector_quantize(x, codebook, None, options)
    assert torch.equal(got.sums, want.sums)


def test_an_empty_batch_has_a_gradient_of_zero(backend: str, device: torch.device) -> None:
    codebook = torch.randn(5, 8, device=device, requires_grad=True)
    out = vq.vector_quantize(torch.empty(0, 8, device=device), codebook, codebook_weight=1.0, backend=backend)
    (grad,) = torch.autograd.grad(out.loss, codebook)
    assert torch.equal(grad, torch.zeros_like(grad))
    assert torch.equal(out.sums, torch.zeros_like(out.sums))
