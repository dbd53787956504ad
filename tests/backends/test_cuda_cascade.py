"""The CUDA C++ cascade on the host: one product over all rows, all products over those left open.

What tensor cores lose, in ``test_cuda_certificate.py``, and what one part of a number misses are driven
to the bound of each pass; steps and rows are counted.
"""

from __future__ import annotations

from typing import Any

import cuda_host
import pytest
import torch
from cuda_host import machine
from support import exact_codes, quantize_into
from torch import Tensor

from vq_kernels.backends import reference
from vq_kernels.backends.cuda import CudaBackend

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = {
    "f32": (F32, F32),
    "f16": (F16, F16),
    "f16-f32": (F16, F32),
    "bf16-f32": (BF16, F32),
    "bf16": (BF16, BF16),
}
dtypes = pytest.mark.parametrize("dtype", DTYPES)
metrics = pytest.mark.parametrize("metric", ["l2", "cosine"])
schedules = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "backward"])


@pytest.fixture(scope="module")
def kernels() -> CudaBackend:
    return cuda_host.load_backend()


@dtypes
@metrics
@pytest.mark.parametrize("dim", [8, 31, 32, 64, 100, 128, 256, 512])
def test_indices_are_those_of_the_reference(dim: int, metric: str, dtype: str, kernels: CudaBackend) -> None:
    """Random rows, half way between codes, near equal codes, with NaN, and all at once."""
    x_dtype, codebook_dtype = DTYPES[dtype]
    codebook = torch.randn(150, dim)
    codebook[70:75] = codebook[:5]
    codebook[80:90] = codebook[:10] + torch.randn(10, dim) * 2.0**-12
    codebook = codebook.to(codebook_dtype)
    codebook[90, 0] = torch.nan
    rounded = codebook.float()
    pairs = torch.randint(0, 70, (2, 40))
    x = torch.cat([torch.randn(40, dim), (rounded[pairs[0]] + rounded[pairs[1]]) / 2, rounded[:20]]).to(
        x_dtype
    )
    x[3, dim - 1], x[7, 0] = torch.nan, torch.inf
    want = exact_codes(x[None], codebook, metric)
    for rows in (x[None], x.t().contiguous().t()[None], torch.cat([x, x], 1)[:, 1 : dim + 1][None]):
        if rows.stride(2) == 1 and rows.stride(1) != dim:
            want = exact_codes(rows, codebook, metric)  # an odd slice: other values
        assert torch.equal(kernels.nearest_code(rows, codebook, metric, "exact"), want)


def residual_pair(dim: int, lead: float) -> tuple[Tensor, Tensor]:
    """One row and two opposite codes; what the row's float16 part misses reverses their order.

    Entries of the row are +-1 plus nearly half a unit of float16, which one part loses, all to the side of
    the first code; an exact entry favours the second code by ``lead`` times that.
    """
    lost = 2.0**-12 - 2.0**-18
    row = torch.ones(dim)
    row[1::2] = -1.0
    row += lost
    row[0] -= round(lead * dim * lost * 2.0**9) * 2.0**-9
    code = torch.full((dim,), 2.0)
    return row[None], torch.stack([code, -code])


# What one part misses is of the row; or of the codes, the row being all of one value.
MISSED = {
    "f32-rows": (F32, False),
    "f32-codes": (F32, True),
    "f16-f32-codes": (F16, True),
    "bf16-f32-codes": (BF16, True),
}


@pytest.mark.parametrize("block", [2, 4, 16])
@pytest.mark.parametrize("missed", MISSED)
@pytest.mark.parametrize("dim", [32, 64, 100, 128, 256, 512])
def test_one_product_at_its_bound(dim: int, missed: str, block: int, kernels: CudaBackend) -> None:
    """What missing parts could change is left to the second pass; half the bound is wrong."""
    x, codebook = residual_pair(dim, 0.8)
    dtype, of_codes = MISSED[missed]
    if of_codes:
        x, codebook = codebook[:1], torch.cat([x, -x])
    x = x[None].to(dtype)
    assert exact_codes(x, codebook, "cosine").item() == 0
    with machine(tensor_core_block=block):
        assert kernels.nearest_code(x, codebook, "cosine", "exact").item() == 0
        assert kernels.open_rows(x, codebook, "cosine") == (1, 0)
    with machine(tensor_core_block=block, certificate=0.5):
        assert kernels.nearest_code(x, codebook, "cosine", "exact").item() == 1


@dtypes
@pytest.mark.parametrize("dim", [64, 128])
def test_few_rows_are_open(dim: int, dtype: str, kernels: CudaBackend) -> None:
    """Some per cent of random rows after one product of parts, next to none after all of them."""
    x_dtype, codebook_dtype = DTYPES[dtype]
    x, codebook = torch.randn(1, 800, dim).to(x_dtype), torch.randn(512, dim).to(codebook_dtype)
    first, second = kernels.open_rows(x, codebook, "l2")
    if x_dtype == codebook_dtype and x_dtype != F32:
        assert first <= 8, "16-bit operands lose nothing but in their sums"
        assert second == 0, "no second pass"
    else:
        assert 1 <= first <= 80
        assert second <= 4


def test_unsplit_sums_are_chunked(kernels: CudaBackend) -> None:
    """At large D too, so that open rows of 16-bit operands do not grow in number with it."""
    x, codebook = torch.randn(1, 400, 512).bfloat16(), torch.randn(256, 512).bfloat16()
    assert kernels.open_rows(x, codebook, "l2")[0] <= 4


@schedules
@pytest.mark.parametrize("processors", [1, 40])
@pytest.mark.parametrize("dim", [48, 100])
def test_listed_rows_are_shared_out(dim: int, processors: int, reverse: bool, kernels: CudaBackend) -> None:
    """Over more blocks than there are rows for, which divide the codes, and over one that takes all."""
    codebook = torch.randn(400, dim)
    pairs = torch.randint(0, 400, (2, 150))
    x = ((codebook[pairs[0]] + codebook[pairs[1]]) / 2)[None]
    x[0, 11, 5] = torch.nan
    mask = torch.rand(1, 150) > 0.2
    want_out, out = torch.empty_like(x), torch.empty_like(x)
    want = quantize_into(want_out, reference, x, codebook, mask)
    with machine(reverse=reverse, processors=processors, shared_limit=99 * 1024):
        found = kernels.nearest_code(x, codebook, "l2", "exact")
        got = quantize_into(out, kernels, x, codebook, mask)
    assert torch.equal(found, exact_codes(x, codebook))
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(out.nan_to_num(), want_out.nan_to_num())
    assert torch.equal(got.counts, want.counts)
    assert got.valid_rows == want.valid_rows
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(got.sums, want.sums, rtol=1e-6, atol=1e-6)


def test_the_loss_of_open_rows_does_not_depend_on_their_order(kernels: CudaBackend) -> None:
    """Rows are listed in whatever order blocks come; their errors of very different size add up the same."""
    codebook = torch.randn(130, 64)
    x = codebook[:64] * torch.logspace(-8, 8, 64)[:, None]
    x = torch.cat([x, (codebook[:64] + codebook[64:128]) / 2]).repeat(3, 1)[None]
    losses = set()
    for reverse in (False, True):
        for processors in (1, 3, 40):
            with machine(reverse=reverse, processors=processors):
                losses.add(quantize_into(torch.empty_like(x), kernels, x, codebook).loss.item())
    assert len(losses) == 1
    want = quantize_into(torch.empty_like(x), reference, x, codebook)
    torch.testing.assert_close(torch.tensor(losses.pop()), want.loss, rtol=1e-5, atol=0)


def test_an_open_row_can_have_an_infinite_error(kernels: CudaBackend) -> None:
    x, codebook = torch.full((1, 3, 40), 3e38), torch.full((2, 40), -3e38)
    codebook[1, 0] = -2e38
    got = quantize_into(torch.empty_like(x), kernels, x, codebook)
    assert torch.equal(got.indices, exact_codes(x, codebook))
    assert got.loss == torch.inf


EQUAL_CODES: dict[str, Any] = {
    "zero": lambda k, d: torch.zeros(k, d),
    "collapsed": lambda k, d: torch.randn(1, d).repeat(k, 1),
    "nine_copies": lambda k, d: torch.randn(-(-k // 9), d).repeat(9, 1)[:k][torch.randperm(k)],
}


@pytest.mark.parametrize("codes", EQUAL_CODES)
@pytest.mark.parametrize("dtype", ["f32", "bf16-f32"])
def test_equal_codes_take_at_most_twice_the_steps(codes: str, dtype: str, kernels: CudaBackend) -> None:
    """They are out of the race before the first pass, so that no pass is left with rows near all of them."""
    module = cuda_host.load_module()
    x, k = torch.randn(1, 256, 64).to(DTYPES[dtype][0]), 1024
    steps = []
    for codebook in (torch.randn(k, 64), EQUAL_CODES[codes](k, 64)):
        before = module.steps()
        got = kernels.nearest_code(x, codebook, "l2", "exact")
        steps.append(module.steps() - before)
    assert steps[1] <= 2 * steps[0]
    assert torch.equal(got[:, :40], exact_codes(x[:, :40], codebook))


def test_the_cascade_takes_fewer_steps_than_all_products(kernels: CudaBackend) -> None:
    module = cuda_host.load_module()
    x, codebook = torch.randn(1, 512, 64), torch.randn(1024, 64)
    steps = {}
    for precision in ("exact", "high"):
        before = module.steps()
        kernels.nearest_code(x, codebook, "l2", precision)
        steps[precision] = module.steps() - before
    assert steps["exact"] < 0.8 * steps["high"]


@metrics
def test_codes_out_of_range_of_float16(metric: str, kernels: CudaBackend) -> None:
    """Far codes are not in the product; where they could win the row is scored against every code."""
    x, codebook = torch.randn(1, 60, 40), torch.randn(90, 40)
    codebook[51::2][:5] *= 1e5  # not among those that scale and centre come from
    x[0, :20] = codebook[51:59:2].repeat(5, 1) * (1 + torch.rand(20, 1))
    got = kernels.nearest_code(x, codebook, metric, "exact")
    assert torch.equal(got, exact_codes(x, codebook, metric))
    first, _ = kernels.open_rows(x, codebook, metric)
    assert first == 60 if metric == "cosine" else 20 <= first < 40
