"""The CUDA searches, run on the host: against the reference, on every path they have.

``tests/operators`` runs the public operations on this backend too; here are the things that only its
author knows of: which kernel serves which size, and how its work is divided.
"""

from __future__ import annotations

import itertools

import cuda_host
import pytest
import torch
from cuda_host import machine
from cuda_host_support import DTYPES, dtypes, rows, schedules
from support import exact_codes, quantize_into
from torch import Tensor

from vq_kernels.backends.cuda import CudaBackend


@pytest.fixture(scope="module")
def kernels() -> CudaBackend:
    return cuda_host.load_backend()


# --- the search, on each of its kernels ---------------------------------------------------------------

# name -> (dims, device): D <= 8; matrix instructions with 32 and with 16 rows a warp, and with rows that do
# not fit into shared memory; and without them.
PATHS = {
    "small": ((1, 2, 3, 8), {}),
    "matrix": ((9, 16, 33, 64), {}),
    "matrix_deep": ((65, 130), {}),
    "matrix_16_rows": ((100, 150), {"shared_limit": 65 * 1024}),
    "matrix_streamed": ((330, 530), {"shared_limit": 80 * 1024}),
    "tile": ((9, 70), {"major": 7}),
    "tile_too_deep": ((300,), {"shared_limit": 48 * 1024}),
}


@dtypes
@pytest.mark.parametrize("path", PATHS)
@schedules
def test_exact_search(path: str, dtype: torch.dtype, reverse: bool, kernels: CudaBackend) -> None:
    dims, device = PATHS[path]
    shapes = itertools.cycle([(1, 1, 1), (2, 67, 65), (1, 63, 130), (3, 50, 7)])
    with machine(reverse=reverse, **device):
        for d, (b, m, k), metric in zip(
            2 * dims, shapes, itertools.cycle(["l2", "cosine", "l2"]), strict=False
        ):
            x, codebook = rows(b, m, d, dtype, channel_first=k == 65), torch.randn(k, d)
            for codes in (codebook, codebook.to(dtype)):
                got = kernels.nearest_code(x, codes, metric, "exact")
                assert torch.equal(got, exact_codes(x, codes, metric)), (
                    d,
                    b,
                    m,
                    k,
                    metric,
                )


@dtypes
@pytest.mark.parametrize("dim", [8, 24, 72])
def test_near_ties_are_scored_again(dim: int, dtype: torch.dtype, kernels: CudaBackend) -> None:
    """Midpoints of codes, equal codes and a common offset: nearly every row is ambiguous."""
    codebook = (torch.randn(70, dim) + 100).to(dtype).float()
    codebook[50:60] = codebook[40:50]
    pairs = torch.randint(0, 70, (2, 90))
    x = ((codebook[pairs[0]] + codebook[pairs[1]]) / 2).to(dtype)[None]
    for codes in (codebook, codebook.to(dtype)):
        got = kernels.nearest_code(x, codes, "l2", "exact")
        assert torch.equal(got, exact_codes(x, codes))


@pytest.mark.parametrize(("dim", "device"), [(8, {}), (64, {}), (96, {}), (40, {"major": 7})])
@dtypes
def test_the_certificate_is_needed_and_enough(
    dim: int, device: dict[str, int], dtype: torch.dtype, kernels: CudaBackend
) -> None:
    """Near-ties at the size of the error bound: right with the bound, wrong with a hundredth of it."""
    codebook = torch.randn(64, dim)
    codebook[32:] = codebook[:32] + torch.randn(32, dim) * 2.0**-12
    pairs = torch.randint(0, 32, (2000,))
    step = torch.randn(2000, dim) * 2.0**-7
    x = ((codebook[pairs] + codebook[pairs + 32]) / 2 + step).to(dtype)[None]
    truth = exact_codes(x, codebook)
    wrong = {}
    with torch.no_grad():
        for scale in (1.0, 0.01):
            with machine(certificate=scale, **device):
                wrong[scale] = int((kernels.nearest_code(x, codebook, "l2", "exact") != truth).sum())
    assert wrong[1.0] == 0
    assert wrong[0.01] > 0


@dtypes
@pytest.mark.parametrize("path", ["small", "matrix", "matrix_deep", "tile"])
@schedules
def test_few_rows_share_the_codes_out(
    path: str, dtype: torch.dtype, reverse: bool, kernels: CudaBackend
) -> None:
    """Several blocks for the same rows, each with some of the codes; equal codes lie in different blocks."""
    dims, device = PATHS[path]
    x, codebook = rows(1, 30, dims[-1], dtype), torch.randn(700, dims[-1]).to(dtype)
    codebook[600:] = codebook[:100]
    codebook[300:320] = torch.nan
    want = exact_codes(x, codebook)
    assert 0 < (want < 100).sum() < 30
    with machine(reverse=reverse, **device):
        assert torch.equal(kernels.nearest_code(x, codebook, "l2", "exact"), want)
        out = torch.empty_like(x)
        got = quantize_into(out, kernels, x, codebook)
    assert torch.equal(got.indices, want)
    assert torch.equal(out, codebook[want])
    assert torch.equal(got.counts, torch.bincount(want[0], minlength=700))
    assert got.valid_rows == 30


def scored_exactly(kernels: CudaBackend, x: Tensor, codebook: Tensor) -> float:
    """How many codes per row the certificate left for the exact score, 3 D products each."""
    module = cuda_host.load_module()
    before = module.float64_products()
    kernels.nearest_code(x, codebook, "l2", "exact")
    return (module.float64_products() - before) / (3 * x.shape[2] * x.shape[0] * x.shape[1])


EQUAL_CODES = {
    "zero": lambda d: torch.zeros(300, d),
    "signed_zeros": lambda d: torch.randint(0, 2, (300, d)) * -0.0,
    "collapsed": lambda d: torch.randn(1, d).repeat(300, 1),
    "nine_copies": lambda d: torch.randn(33, d).repeat(9, 1)[torch.randperm(297)],
}


@schedules
@pytest.mark.parametrize("codes", EQUAL_CODES)
@pytest.mark.parametrize("path", ["small", "matrix", "tile"])
def test_equal_codes_leave_no_row_open(path: str, codes: str, reverse: bool, kernels: CudaBackend) -> None:
    """All but the first of equal codes are out of the race from the start, in whatever order they are met."""
    dims, device = PATHS[path]
    x, codebook = rows(1, 200, dims[-1], torch.float32), EQUAL_CODES[codes](dims[-1])
    with machine(reverse=reverse, **device):
        assert scored_exactly(kernels, x, codebook) < 0.1
        for dtype in DTYPES.values():
            rounded = x.to(dtype)
            got = kernels.nearest_code(rounded, codebook, "l2", "exact")
            assert torch.equal(got, exact_codes(rounded, codebook))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("path", ["matrix", "matrix_deep"])
def test_one_open_row_takes_no_longer_than_the_search(path: str, metric: str, kernels: CudaBackend) -> None:
    """The second pass divides the codes of a row over the device."""
    dims, _ = PATHS[path]
    module = cuda_host.load_module()
    codebook = torch.randn(1024, dims[-1]).bfloat16()
    x = codebook[None, 100:164] * 1.125  # nearer to their codes than any sum can hide
    x[0, 9, 0] = 0.0
    codebook[[5, 700]] = x[0, 9]
    codebook[5, 0], codebook[700, 0] = 1.0, -1.0  # as near as each other
    codebook[109] *= -1.0
    open_row = x.clone()
    x[0, 9, 0] = 4.0
    steps, products = [], []
    with machine(processors=33):
        for batch in (x, open_row):
            before = module.steps(), module.float64_products()
            got = kernels.nearest_code(batch, codebook, metric, "exact")
            steps.append(module.steps() - before[0])
            products.append(module.float64_products() - before[1])
            assert torch.equal(got, exact_codes(batch, codebook, metric))
    assert products[0] == 0
    assert products[1] > 0
    assert steps[1] <= 2 * steps[0]


@pytest.mark.parametrize(("n", "splits"), [(1 << 7, 7), (9 << 7, 1), (10 << 7, 2), (18 << 7, 1)])
def test_codes_are_split_where_a_wave_would_be_mostly_empty(
    n: int, splits: int, kernels: CudaBackend
) -> None:
    """With room for 9 blocks of 128 rows at a time, 10 of them would take two waves."""
    module = cuda_host.load_module()
    x, codebook = rows(1, n, 16, torch.bfloat16), torch.randn(1200, 16).bfloat16()
    bytes_of_three = 130 * 1024  # of shared memory, for blocks of 39 KiB
    with machine(shared_limit=bytes_of_three):
        module.blocks_launched()
        got = kernels.nearest_code(x, codebook, "l2", "fast")
        assert module.blocks_launched()[1] == splits * n // 128
        assert torch.equal(got, kernels.nearest_code(x, codebook, "l2", "exact"))


@pytest.mark.parametrize("channel_first", [False, True], ids=["rows", "channel_first"])
def test_long_rows_go_to_the_tensor_cores_too(channel_first: bool, kernels: CudaBackend) -> None:
    """Rows of which shared memory holds no block are streamed past them."""
    module = cuda_host.load_module()
    x, codebook = rows(2, 70, 800, torch.float32, channel_first), torch.randn(200, 800)
    before = module.steps()
    got = kernels.nearest_code(x, codebook, "l2", "exact")
    assert torch.equal(got, exact_codes(x, codebook))
    on_tensor_cores = module.steps() - before
    with machine(major=7):
        before = module.steps()
        assert torch.equal(kernels.nearest_code(x, codebook, "l2", "exact"), got)
    assert 2 * on_tensor_cores < module.steps() - before


@pytest.mark.parametrize("dim", [129, 160, 256])
def test_blocks_are_as_large_as_leaves_two_on_a_multiprocessor(dim: int, kernels: CudaBackend) -> None:
    module = cuda_host.load_module()
    codebook = torch.randn(70, dim)
    for precision, block_rows in (("high", 64), ("exact", 128)):  # three products, and one in the first pass
        x = rows(1, 1280, dim, torch.float32)
        module.blocks_launched()
        got = kernels.nearest_code(x, codebook, "l2", precision)
        assert module.blocks_launched()[1] == 1280 // block_rows
        assert torch.equal(got[:, :50], exact_codes(x[:, :50], codebook))


@pytest.mark.parametrize(("dim", "most"), [(8, 0.01), (64, 0.03), (128, 0.03)])
@dtypes
def test_few_codes_are_left_to_the_exact_score(
    dim: int, most: float, dtype: torch.dtype, kernels: CudaBackend
) -> None:
    x, codebook = rows(1, 500, dim, dtype), torch.randn(512, dim)
    assert scored_exactly(kernels, x, codebook) <= most
    assert scored_exactly(kernels, x, codebook + 10) <= 10 * most, "codes with a common offset"


def test_a_stray_code_costs_nothing(kernels: CudaBackend) -> None:
    """One code far away must not loosen the bound of all rows."""
    for dim, device in ((8, {}), (64, {}), (40, {"major": 7})):
        x, codebook = rows(1, 300, dim, torch.float32), torch.randn(128, dim)
        codebook[77] *= 1e6
        with machine(**device):
            assert scored_exactly(kernels, x, codebook) < 0.05
            with machine(certificate=1e9, **device):
                assert scored_exactly(kernels, x, codebook) >= 1, "a bound so large leaves every row open"
            got = kernels.nearest_code(x, codebook, "l2", "exact")
        assert torch.equal(got, exact_codes(x, codebook))


def test_overflow_and_underflow(kernels: CudaBackend) -> None:
    for scale in (1e-42, 1e-30, 1e-20, 1e19, 1e30, 3e37):
        for dim in (5, 20, 70):
            x, codebook = (
                scale * rows(1, 40, dim, torch.float32).clamp(-3, 3),
                scale * torch.randn(66, dim).clamp(-3, 3),
            )
            for metric in ("l2", "cosine"):
                got = kernels.nearest_code(x, codebook, metric, "exact")
                assert torch.equal(got, exact_codes(x, codebook, metric)), (
                    scale,
                    dim,
                    metric,
                )


def test_one_huge_code_does_not_hide_the_others(kernels: CudaBackend) -> None:
    x, codebook = rows(1, 50, 20, torch.float32), torch.randn(70, 20)
    codebook[3] = 3e38
    codebook[4, 7] = torch.nan
    codebook[5, 0] = -torch.inf
    got = kernels.nearest_code(x, codebook, "l2", "exact")
    assert torch.equal(got, exact_codes(x, codebook))


@dtypes
@pytest.mark.parametrize("dim", [6, 40, 100])
@pytest.mark.parametrize("precision", ["high", "fast"])
def test_lower_precision(precision: str, dim: int, dtype: torch.dtype, kernels: CudaBackend) -> None:
    """No score may exceed the best by more than the unit of the products that are made."""
    x, codebook = rows(2, 70, dim, dtype), torch.randn(129, dim)
    x[1, 3, 0] = torch.nan
    got = kernels.nearest_code(x, codebook, "l2", precision)
    assert got[1, 3] == 0
    x[1, 3, 0] = 0.0
    scores = 0.5 * codebook.double().square().sum(1) - x.double() @ codebook.double().T  # [B, M, K]
    excess = scores.gather(2, got[..., None])[..., 0] - scores.amin(2)
    excess[1, 3] = 0.0
    unit = 2.0**-15 if precision == "high" else 2.0**-7
    assert (excess <= 2 * unit * x.double().norm(dim=2) * codebook.norm(dim=1).amax()).all()
