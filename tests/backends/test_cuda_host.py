"""The CUDA kernels, run on the host: kernel by kernel against the reference.

``tests/operators`` runs the public operations on this backend too; here are the things that only its
author knows of: both orders in which threads can run, what lies around the outputs, and whether the shim
itself finds mistakes. Searches have a file of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cuda_host
import pytest
import torch
from cuda_host import machine
from cuda_host_support import dtypes, rows, schedules, surrounded
from support import quantize_into
from torch import Tensor

from vq_kernels.backends import reference
from vq_kernels.backends.base import QuantizeOptions
from vq_kernels.backends.cuda import CudaBackend


@pytest.fixture(scope="module")
def kernels() -> CudaBackend:
    return cuda_host.load_backend()


# --- the fused step -------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("channel_first", [False, True], ids=["rows", "channel_first"])
@pytest.mark.parametrize("dim", [3, 48, 70])
@schedules
def test_fused_step(
    dim: int, channel_first: bool, dtype: torch.dtype, reverse: bool, kernels: CudaBackend
) -> None:
    b, m, k = 2, 167, 65
    x, codebook = rows(b, m, dim, dtype, channel_first), torch.randn(k, dim)
    x[1, 5, dim - 1] = torch.inf
    x[0, 7, 0] = torch.nan
    mask = torch.rand(b, m) > 0.3
    mask[0, 7] = False
    for codes, chosen in ((codebook, mask), (codebook.to(dtype), None)):
        want_out = torch.empty(b, m, dim, dtype=dtype)
        want = quantize_into(want_out, reference, x, codes, chosen)
        out, room = surrounded(b, m, dim, dtype, channel_first)
        with machine(reverse=reverse):
            got = quantize_into(out, kernels, x, codes, chosen)
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(out.isnan(), want_out.isnan())
        assert torch.equal(out.nan_to_num(), want_out.nan_to_num())
        out.fill_(1.0)
        assert (room == 1.0).all(), "something was written beside the output"
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=0, equal_nan=True)
        assert got.valid_rows == want.valid_rows
        assert torch.equal(got.counts, want.counts)
        torch.testing.assert_close(got.sums, want.sums, rtol=1e-6, atol=1e-6)


def test_fused_mean_is_the_same_in_every_schedule(kernels: CudaBackend) -> None:
    x, codebook = rows(1, 1000, 16, torch.float32), torch.randn(33, 16)
    results = []
    for reverse in (False, True):
        with machine(reverse=reverse):
            out = torch.empty_like(x)
            results.append(quantize_into(out, kernels, x, codebook))
    assert torch.equal(results[0].loss, results[1].loss)
    assert torch.equal(results[0].sums, results[1].sums)


def test_the_loss_carries_its_weight_at_no_launch(kernels: CudaBackend) -> None:
    module = cuda_host.load_module()
    x, codebook = rows(1, 300, 16, torch.float32), torch.randn(64, 16)
    mask = torch.rand(1, 300) > 0.3
    before = module.launches()
    want = quantize_into(torch.empty_like(x), kernels, x, codebook, mask)
    launches = module.launches() - before
    for weight in (0.25, 1.0, 1.3):
        before = module.launches()
        got = quantize_into(torch.empty_like(x), kernels, x, codebook, mask, loss_weight=weight)
        assert module.launches() - before == launches
        assert torch.equal(got.loss, want.loss * weight)
        for a, b in zip(got._replace(loss=want.loss)[:-1], want[:-1], strict=True):
            assert torch.equal(a, b)


@dtypes
def test_a_training_step_is_six_launches(dtype: torch.dtype, kernels: CudaBackend) -> None:
    """Fills of memory count; the codebook that the backward pass reads is copied in one of them."""
    module = cuda_host.load_module()
    x, codebook = rows(1, 300, 16, torch.float32), torch.randn(150, 16)
    copied = codebook.to(dtype)
    options = QuantizeOptions("l2", "exact", -1, statistics=True, keep_codes=True, backend=None)
    kept, out = torch.full_like(copied, torch.nan), torch.empty_like(x, dtype=dtype)
    kernels.vector_quantize(x.to(dtype), copied, None, options, out, kept)
    assert torch.equal(kept, copied)
    out, kept = torch.empty_like(x), torch.full_like(codebook, torch.nan)
    before = module.launches()
    got = kernels.vector_quantize(x, codebook, None, options, out, kept)
    assert torch.equal(kept, codebook)
    one = torch.ones(())
    kernels.vector_quantize_backward(
        x, one, x, codebook, got.indices, got.valid_rows, 0.1, "rotation_trick", out
    )
    kernels.ema_update_(codebook, torch.ones(150), codebook.clone(), got.counts, got.sums, 0.9, 1e-5, False)
    assert module.launches() - before == 6
    before = module.launches()
    kernels.nearest_code(x, codebook, "l2", "exact")
    assert module.launches() - before == 3
    before = module.launches()
    kernels.nearest_code(x, codebook, "l2", "high")
    assert module.launches() - before == 2
    before = module.launches()
    kernels.nearest_code(x.repeat(1, 1, 3), codebook.repeat(1, 3), "l2", "exact")
    assert module.launches() - before == 4, (
        "the rows that one product leaves open are searched in one launch more"
    )


def test_scratch_memory_grows_with_n_and_k_d_only(kernels: CudaBackend) -> None:
    module = cuda_host.load_module().cuda
    n, d = 2**20, 64
    for k in (512, 65536):
        for dtype, precision in itertools.product(range(3), range(3)):
            x, codebook = (0, dtype, 1, n, d, n * d, d, 1), (0, 0, k, d)
            size = module.search_workspace(x, codebook, precision, True, True, 0)
            assert size <= 13 * n + 16 * k * (d + 4) + 2**18, (k, dtype, precision)
        assert module.statistics_workspace(n, k, d) <= 8 * n + 16 * k * d


# --- statistics -------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("channel_first", [False, True], ids=["rows", "channel_first"])
@schedules
def test_statistics(channel_first: bool, dtype: torch.dtype, reverse: bool, kernels: CudaBackend) -> None:
    for b, m, d, k in ((1, 1, 1, 1), (2, 150, 33, 7), (1, 300, 5, 300)):
        x, indices = rows(b, m, d, dtype, channel_first), torch.randint(-1, k, (b, m))
        with machine(reverse=reverse):
            counts, sums = kernels.code_statistics(x, indices, k, True)
        want_counts, want_sums = reference.code_statistics(x, indices, k, True)
        assert torch.equal(counts, want_counts)
        torch.testing.assert_close(sums, want_sums, rtol=1e-6, atol=1e-6)


def test_sums_do_not_depend_on_the_order_of_rows(kernels: CudaBackend) -> None:
    """Not promised by the contract, but so it is: the sums are integers."""
    x, indices = rows(1, 500, 12, torch.float32), torch.randint(0, 9, (1, 500))
    order = torch.randperm(500)
    _, sums = kernels.code_statistics(x, indices, 9, True)
    _, shuffled = kernels.code_statistics(x[:, order], indices[:, order], 9, True)
    assert torch.equal(sums, shuffled)


def test_sums_keep_small_codes_beside_huge_ones(kernels: CudaBackend) -> None:
    """Each code has its own fixed-point scale, so 1e38 in one does not swallow 1e-38 in another."""
    scale = torch.tensor([1e-44, 1e-38, 1e-10, 1.0, 1e20, 1e38])
    indices = torch.arange(6).repeat(100)[None]
    x = torch.rand(1, 600, 4) * scale[indices[0]][None, :, None]
    _, sums = kernels.code_statistics(x, indices, 6, True)
    _, want = reference.code_statistics(x, indices, 6, True)
    torch.testing.assert_close(sums, want, rtol=1e-6, atol=0)


def test_nonfinite_elements_that_are_not_skipped(kernels: CudaBackend) -> None:
    x = torch.ones(1, 6, 4)
    x[0, 0, 0], x[0, 1, 1], x[0, 1, 2], x[0, 2, 2], x[0, 3, 3] = (
        torch.nan,
        torch.inf,
        torch.inf,
        -torch.inf,
        -torch.inf,
    )
    indices = torch.tensor([[0, 0, 0, 0, 0, 1]])
    counts, sums = kernels.code_statistics(x, indices, 2, False)
    assert counts.tolist() == [5, 1]
    want = torch.tensor([[torch.nan, torch.inf, torch.nan, -torch.inf], [1.0] * 4])
    torch.testing.assert_close(sums, want, equal_nan=True)


# --- gather, EMA, backward ------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("channel_first", [False, True], ids=["rows", "channel_first"])
def test_gather(channel_first: bool, dtype: torch.dtype, kernels: CudaBackend) -> None:
    codebook, indices = torch.randn(9, 35).to(dtype), torch.randint(0, 9, (3, 100))
    out, room = surrounded(3, 100, 35, dtype, channel_first)
    kernels.gather_codes(codebook, indices, out)
    assert torch.equal(out, codebook[indices])
    out.fill_(1.0)
    assert (room == 1.0).all()


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("counts_dtype", [torch.int64, torch.float32], ids=["int64", "float32"])
@pytest.mark.parametrize("decay", [0.99, 0.2, 0.0, 1.0])
@schedules
def test_ema(
    decay: float, counts_dtype: torch.dtype, normalize: bool, reverse: bool, kernels: CudaBackend
) -> None:
    for k, d in ((1, 1), (5, 40), (600, 3)):
        state = [torch.randn(k, d), torch.rand(k), torch.randn(k, d)]
        counts, sums = torch.randint(0, 5, (k,)).to(counts_dtype), torch.randn(k, d)
        counts[0] = 1
        want = [t.clone() for t in state]
        reference.ema_update_(*want, counts, sums, decay, 1e-5, normalize)
        with machine(reverse=reverse):
            kernels.ema_update_(*state, counts, sums, decay, 1e-5, normalize)
        for got, expected in zip(state, want, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@dtypes
@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
@pytest.mark.parametrize("channel_first", [False, True], ids=["rows", "channel_first"])
def test_backward(channel_first: bool, gradient: str, dtype: torch.dtype, kernels: CudaBackend) -> None:
    b, m, d, k = 2, 150, 35, 11
    x, codebook, indices = (
        rows(b, m, d, dtype, channel_first),
        torch.randn(k, d),
        torch.randint(-1, k, (b, m)),
    )
    x[0, 3] = 0.0
    grads = [rows(b, m, d, dtype, not channel_first), torch.ones((), dtype=dtype).expand(b, m, d), None]
    valid = (indices >= 0).sum()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for grad, loss in itertools.product(grads, (torch.tensor(2.5), None)):
        args = (grad, loss, x, codebook, indices, valid, 0.7, gradient)
        want = torch.empty(b, m, d, dtype=dtype)
        reference.vector_quantize_backward(*args, want)
        got, room = surrounded(b, m, d, dtype, channel_first)
        kernels.vector_quantize_backward(*args, got)
        torch.testing.assert_close(got, want, **tolerance)
        got.fill_(1.0)
        assert (room == 1.0).all()


@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("d", [8, 64, 104, 320])
def test_backward_of_rows_that_are_vectors(
    d: int, dtypes: tuple[torch.dtype, torch.dtype], kernels: CudaBackend
) -> None:
    """16 bytes at a time: lanes that have no vector, rows of more vectors than a warp has lanes, the batch as
    one and as several, any row masked, an index that nobody wrote."""
    b, m, k = 3, 45, 7
    dtype, code_dtype = dtypes
    codebook, indices = torch.randn(k, d).to(code_dtype), torch.randint(-1, k, (b, m))
    indices[1, 5] = k
    whole = torch.randn(b, m + 1, d).to(dtype)
    valid = (indices >= 0).sum()
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for x in (whole[:, :m], whole[:, :m].contiguous()):
        grads = [torch.randn(b, m, d).to(dtype), None]
        for grad, loss in itertools.product(grads, (torch.tensor(2.5), None)):
            args = (grad, loss, x, codebook, indices, valid, 0.7, "straight_through")
            want, got = torch.empty(b, m, d, dtype=dtype), torch.empty(b, m, d, dtype=dtype)
            reference.vector_quantize_backward(*args, want)
            kernels.vector_quantize_backward(*args, got)
            torch.testing.assert_close(got, want, equal_nan=True, **tolerance)


# --- errors, and the shim itself ------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["nearest_code", "vector_quantize"])
def test_more_rows_than_32_bits_are_refused_with_the_remedy(operation: str, kernels: CudaBackend) -> None:
    codebook, most = torch.zeros(2, 3), 2**31 - 2**15
    for x in (torch.zeros(1, 1, 3), torch.zeros(1, 3)):
        shape = [-1] * (x.ndim - 2)
        assert kernels.unsupported_reason(operation, x.expand(*shape, most, 3), codebook) is None
        reason = kernels.unsupported_reason(operation, x.expand(*shape, most + 1, 3), codebook)
        assert reason is not None
        assert f"up to {most} rows in one call, not {most + 1}" in reason
        assert "divide x" in reason


def test_errors_name_the_operation(kernels: CudaBackend) -> None:
    x, codebook, indices = (
        rows(1, 4, 3, torch.float32),
        torch.randn(2, 3),
        torch.zeros(1, 4, dtype=torch.int64),
    )
    module = cuda_host.load_module().cuda
    given = (x.data_ptr(), 0, 1, 4, 3, 12, 3, 1), (codebook.data_ptr(), 0, 2, 3)
    with pytest.raises(RuntimeError, match="nearest_code: cudaErrorInvalidValue"):
        module.nearest_code(*given, (0, 0, 1.0), indices.data_ptr(), 0, 0, 0, 0)
    with pytest.raises(TypeError, match="grad_loss"):
        kernels.vector_quantize_backward(
            None,
            torch.zeros((), dtype=torch.float64),
            x,
            codebook,
            indices,
            indices.sum(),
            1.0,
            "straight_through",
            x,
        )


@pytest.fixture
def faulty() -> Iterator[object]:
    data = torch.arange(64, dtype=torch.float32), torch.empty(64)
    module = cuda_host.load_module()

    def run(fault: int) -> Tensor:
        module.run_faulty(data[0].data_ptr(), data[1].data_ptr(), fault)
        return data[1]

    return run


@schedules
def test_the_shim_finds_mistakes(reverse: bool, faulty) -> None:
    want = torch.arange(63, -1, -1, dtype=torch.float32)
    with machine(reverse=reverse):
        assert torch.equal(faulty(0), want)
        assert faulty(1).isnan().any(), "a missing barrier"
        with pytest.raises(RuntimeError, match="barrier that not all threads"):
            faulty(2)
        with pytest.raises(RuntimeError, match="warp"):
            faulty(3)
        with pytest.raises(RuntimeError, match="past the end of dynamic shared memory"):
            faulty(4)
        assert faulty(5).isnan().sum() == 1, "shared memory that nobody wrote"
        assert faulty(6).isnan().all(), "a copy that nobody waited for"
        assert torch.equal(faulty(0), want), "the shim works on after an error"
