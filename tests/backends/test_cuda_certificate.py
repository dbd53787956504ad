"""The CUDA search's error bound at its limit: never a wrong index, and wrong ones once it is tightened.

The kernels run on the host with tensor cores that lose as much as the bound assumes: products and the
accumulator aligned to the largest of them and cut off, so many at a time (``docs/certificate.md``).
"""

from __future__ import annotations

from typing import Any

import cuda_host
import pytest
import torch
from cuda_host import machine
from support import exact_codes, rational_argmin
from torch import Tensor

from vq_kernels.backends.cuda import CudaBackend

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# Rows and codebook; what is exact there is one, two or three products of 16-bit parts.
DTYPES = {
    "f32": (F32, F32),
    "f16": (F16, F16),
    "f16-f32": (F16, F32),
    "bf16-f32": (BF16, F32),
    "bf16": (BF16, BF16),
}
# D and device of each kernel: D <= 8, float32, and tensor cores with one and with several sums of 64, of rows
# in shared memory and of longer ones.
PASSES: dict[str, tuple[int, dict[str, Any]]] = {
    "small": (7, {}),
    "tile": (40, {"major": 7}),
    "matrix": (48, {"tensor_core_block": 4}),
    "matrix_deep": (150, {"tensor_core_block": 4}),
    "matrix_streamed": (330, {"tensor_core_block": 4, "shared_limit": 80 * 1024}),
}
dtypes = pytest.mark.parametrize("dtype", DTYPES)
passes = pytest.mark.parametrize("path", PASSES)
blocks = pytest.mark.parametrize("block", [2, 4, 16])

LOST = 1 - 2.0**-8  # just below one, in bfloat16
GAINED = 1 + 2.0**-7  # and just above


@pytest.fixture(scope="module")
def kernels() -> CudaBackend:
    return cuda_host.load_backend()


def wrong(kernels: CudaBackend, x: Tensor, codebook: Tensor, metric: str, bound: float, **device: Any) -> int:
    """How many of the rows [N, D] get another index than the reference's, with the bound times ``bound``."""
    with machine(certificate=bound, **device):
        got = kernels.nearest_code(x[None], codebook, metric, "exact")
    return int((got != exact_codes(x[None], codebook, metric)).sum())


def check_pair(
    kernels: CudaBackend, row: Tensor, codebook: Tensor, metric: str, too_tight: float, **device: Any
) -> None:
    """The first code is nearest and found; with the bound times ``too_tight`` the second one is taken."""
    assert rational_argmin(row[None].float(), codebook.float(), metric)[0] == 0
    with machine(**device):
        assert kernels.nearest_code(row[None, None], codebook, metric, "exact").item() == 0
    with machine(certificate=too_tight, **device):
        assert kernels.nearest_code(row[None, None], codebook, metric, "exact").item() == 1


# --- the most that tensor cores can lose ----------------------------------------------------------------


def cut_off_row(d: int) -> Tensor:
    """x of ``cut_off_code``."""
    row = torch.full((d,), 2.0**-9)
    row[::64] = 4.0
    row[1] = 2.0**-5
    return row


def cut_off_code(tails: Tensor, lead: int) -> Tensor:
    """A code [D] whose products with the row are 1, then just below the last bit of 1, and are lost.

    ``tails`` [D] are their signs. Sums start anew every 64 products, each with a 1. The second product
    is ``lead`` last bits, to two or three digits, and is not lost.
    """
    code = LOST * 2.0**-14 * tails
    code[::64] = 0.25
    code[1] = lead * 2.0**-18
    return code.bfloat16().float()


@blocks
@dtypes
@pytest.mark.parametrize(("dim", "too_tight"), [(16, 0.3), (64, 0.57), (150, 0.45)])
def test_the_worst_truncation(
    dim: int, too_tight: float, dtype: str, block: int, kernels: CudaBackend
) -> None:
    """The first code loses all its small products, the second one all that are against it."""
    x_dtype, codebook_dtype = DTYPES[dtype]
    row, tails = cut_off_row(dim), torch.ones(dim)
    lost = 2 * int((row == 2.0**-9).sum()) * LOST
    codebook = torch.stack([cut_off_code(tails, 0), cut_off_code(-tails, int(lost) - 2)])
    check_pair(
        kernels, row.to(x_dtype), codebook.to(codebook_dtype), "cosine", too_tight, tensor_core_block=block
    )


@blocks
@dtypes
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_truncations_drawn_at_the_bound(metric: str, dtype: str, block: int, kernels: CudaBackend) -> None:
    """Pairs of codes that lose more or less, or gain, and whose real scores are a few last bits apart.

    As above, but the first product of 1 is four of a quarter, with signs of its own for each pair of codes
    and the rows near it. Each code is there with both signs, so that the mean is zero.
    """
    x_dtype, codebook_dtype = DTYPES[dtype]
    signs = torch.cartesian_prod(
        *[torch.tensor([1.0, -1.0])] * 4
    )  # [16, 4]: the second half negates the first
    row = torch.full((16, 64), 2.0**-9)
    row[:, :4], row[:, 4] = 2 * signs, 2.0**-5
    row[8:, 4:] *= -1
    positive = torch.rand(8, 2, 1) / 2 + torch.tensor(
        [[0.5], [0.0]]
    )  # so that the first of a pair loses more
    tails = torch.where(torch.rand(8, 2, 59) < positive, 1.0, -1.0)
    lead = torch.randint(0, 4, (8, 2)) * torch.tensor([1, -1]) - tails.sum(2)
    codebook = torch.cat([0.125 * signs[:8, None].expand(8, 2, 4), lead[..., None] * 2.0**-18], 2)
    codebook = torch.cat([codebook, tails * LOST * 2.0**-14], 2).flatten(0, 1)
    codebook = torch.cat([codebook, -codebook.view(8, 2, 64).flip(0).flatten(0, 1)])
    x = (row * 2.0 ** torch.randint(-1, 3, (4, 16, 1))).flatten(0, 1)
    x, codebook = x.to(x_dtype), codebook.to(codebook_dtype)
    assert wrong(kernels, x, codebook, metric, 1.0, tensor_core_block=block) == 0
    assert wrong(kernels, x, codebook, metric, 0.1, tensor_core_block=block) > 0


# --- the most that rounding can lose --------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize(
    ("dim", "device", "too_tight"), [(8, {}, 0.3), (300, {"major": 7}, 0.8)], ids=["small", "tile"]
)
def test_the_worst_rounding(
    dim: int, device: dict[str, Any], too_tight: float, dtype: str, kernels: CudaBackend
) -> None:
    """Products just below half a last bit of the sum, and lost, or just above, and counted as a whole one."""
    x_dtype, codebook_dtype = DTYPES[dtype]
    row = torch.full((dim,), 2.0**-10)
    row[0], row[1] = 4.0, 2.0**-5
    codebook = torch.tensor([[LOST], [GAINED]]) * 2.0**-14 * row.new_ones(dim)
    difference = (dim - 2) * (GAINED - LOST) / 2  # in last bits, 2^-23
    codebook[:, 0] = 0.25
    codebook[:, 1] = torch.tensor([int(difference) + 1, 0]) * 2.0**-18
    check_pair(kernels, row.to(x_dtype), codebook.to(codebook_dtype), "cosine", too_tight, **device)


# --- near-ties of other kinds, through every kernel -----------------------------------------------------


@dtypes
@passes
def test_scores_a_hair_apart(path: str, dtype: str, kernels: CudaBackend) -> None:
    """Each row lies between two codes, off the middle by about the error of a score."""
    (x_dtype, codebook_dtype), (d, device) = DTYPES[dtype], PASSES[path]
    middle = (torch.randn(60, d) * 3).to(BF16).float()
    step = torch.randn(60, d).to(BF16).float() / 16
    codebook = torch.stack([middle + step, middle - step], 1).flatten(0, 1).to(codebook_dtype)
    shift = torch.logspace(-9, -3, 60)[:, None] * torch.randn(60, 1).sign()
    x = (middle + shift * step).to(x_dtype)
    assert wrong(kernels, x, codebook, "l2", 1.0, **device) == 0


@dtypes
@passes
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_permuted_codes(metric: str, path: str, dtype: str, kernels: CudaBackend) -> None:
    """Codes with the same values in another order, rows of one value: scores differ by rounding alone."""
    (x_dtype, codebook_dtype), (d, device) = DTYPES[dtype], PASSES[path]
    unchecked = 0
    for _ in range(3):
        code = torch.randn(d) * 2.0 ** torch.randint(-12, 13, (d,))
        codebook = torch.stack([code[torch.randperm(d)] for _ in range(64)]).to(codebook_dtype)
        x = (torch.randn(64, 1) * 2.0**10).repeat(1, d).to(x_dtype)
        assert wrong(kernels, x, codebook, metric, 1.0, **device) == 0
        unchecked += wrong(kernels, x, codebook, metric, 0.0, **device)
    # Those of tensor cores make room for a column: errors of last bits are gone, the first code wins ties.
    assert unchecked > 0 or path.startswith("matrix")


@dtypes
@passes
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_midpoints_of_codes(offset: float, path: str, dtype: str, kernels: CudaBackend) -> None:
    """Rows half way between two codes, rounded to x's dtype."""
    (x_dtype, codebook_dtype), (d, device) = DTYPES[dtype], PASSES[path]
    codebook = (torch.randn(40, d) + offset).to(codebook_dtype)
    pairs = torch.randint(0, 40, (2, 64))
    x = ((codebook[pairs[0]].float() + codebook[pairs[1]].float()) / 2).to(x_dtype)
    assert wrong(kernels, x, codebook, "l2", 1.0, **device) == 0
