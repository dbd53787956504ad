"""Statistics, gather, the fused step and its backward in every instruction set and thread count."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from native_support import ISAS, use_isa
from support import quantize_into
from torch import Tensor

from vq_kernels.backends import native, reference
from vq_kernels.backends.base import QuantizeOptions

LAYOUTS: dict[str, Callable[[int, int, int], Tensor]] = {
    "channel_last": lambda b, m, d: torch.randn(b, m, d),
    "channel_first": lambda b, m, d: torch.randn(b, d, m).transpose(1, 2),
    "every_other": lambda b, m, d: torch.randn(b, m, d, 2)[..., 1],
    "gap_between_batches": lambda b, m, d: torch.randn(b, m + 3, d)[:, :m],
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SHAPES = [
    *((1, 1, 1, 1), (3, 37, 17, 20), (2, 150, 64, 40), (1, 300, 33, 500)),
    *((2, 150, 8, 20), (1, 700, 11, 80)),  # rows enough for codes of 16 bits to be rounded first
]

over_layouts = pytest.mark.parametrize("layout", LAYOUTS)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES)
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_isa(request.param, monkeypatch)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)


def poisoned(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).fill_(torch.nan)


@over_dtypes
@over_layouts
@over_shapes
def test_fused_step(isa: str, shape: tuple[int, int, int, int], layout: str, dtype: str) -> None:
    b, m, d, k = shape
    x = like(LAYOUTS[layout](b, m, d), DTYPES[dtype])
    codebook = torch.randn(k, d)
    for mask in (None, torch.rand(b, m) > 0.3, torch.zeros(b, m, dtype=torch.bool)):
        out, want_out = poisoned(x), poisoned(x)
        got = quantize_into(out, native, x, codebook, mask)
        want = quantize_into(want_out, reference, x, codebook, mask)
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(out, want_out)
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0)
        assert torch.equal(got.valid_rows, want.valid_rows)
        assert torch.equal(got.counts, want.counts)
        # Both sum in float64 in the order of the batch and round once.
        assert torch.equal(got.sums, want.sums)


@over_dtypes
@over_layouts
def test_bad_rows_in_the_fused_step(isa: str, layout: str, dtype: str) -> None:
    x = like(LAYOUTS[layout](2, 90, 21), DTYPES[dtype])
    x[0, 3, 20], x[1, 0, 0], x[1, 89, 7] = torch.nan, torch.inf, -torch.inf
    codebook = torch.randn(12, 21)
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[1, 0] = mask[0, 5] = False
    out, want_out = poisoned(x), poisoned(x)
    got = quantize_into(out, native, x, codebook, mask)
    want = quantize_into(want_out, reference, x, codebook, mask)
    torch.testing.assert_close(out, want_out, rtol=0, atol=0, equal_nan=True)
    assert out[0, 3].isnan().all()
    assert got.loss.isnan()
    for field in ("indices", "valid_rows", "counts", "sums"):
        assert torch.equal(getattr(got, field), getattr(want, field)), field


@over_dtypes
@over_layouts
def test_statistics(isa: str, layout: str, dtype: str) -> None:
    x = like(LAYOUTS[layout](3, 77, 19), DTYPES[dtype])
    x[0, 0, 0], x[2, 76, 18] = torch.inf, torch.nan
    indices = torch.randint(-1, 9, (3, 77))
    for skip in (True, False):
        counts, sums = native.code_statistics(x, indices, 9, skip)
        want_counts, want_sums = reference.code_statistics(x, indices, 9, skip)
        assert torch.equal(counts, want_counts)
        torch.testing.assert_close(sums, want_sums, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [2, 150], ids=["few_rows", "blocks"])
def test_the_loss_carries_its_weight(isa: str, rows: int) -> None:
    x, codebook = torch.randn(1, rows, 19), torch.randn(40, 19)
    want = quantize_into(poisoned(x), native, x, codebook)
    for weight in (0.25, 1.0, 1.3, 0.0):
        got = quantize_into(poisoned(x), native, x, codebook, loss_weight=weight)
        assert torch.equal(got.loss, want.loss * weight)
        for a, b in zip(got._replace(loss=want.loss)[:-1], want[:-1], strict=True):
            assert torch.equal(a, b)


@over_dtypes
@pytest.mark.parametrize("rows", [2, 150], ids=["few_rows", "blocks"])
def test_the_codebook_is_copied_as_it_was_searched(rows: int, dtype: str) -> None:
    x, codebook = (torch.randn(1, n, 19).to(DTYPES[dtype]) for n in (rows, 40))
    codebook = codebook[0]
    options = QuantizeOptions("l2", "exact", -1, statistics=False, keep_codes=True, backend=None)
    copy = torch.full_like(codebook, torch.nan)
    result = native.vector_quantize(x, codebook, None, options, poisoned(x), copy)
    assert result.codebook_copy is copy
    assert torch.equal(copy, codebook)


@pytest.mark.parametrize("skew", ["even", "one_code", "few_rows"])
def test_threads_change_no_bit(isa: str, skew: str, threads: Callable[[int], None]) -> None:
    x = 100 * torch.randn(2, 1500, 40)
    codebook = torch.randn(64, 40)
    if skew == "one_code":
        codebook[1:] += 1e4
    if skew == "few_rows":
        x = x[:, :3]
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        out = poisoned(x)
        step = quantize_into(out, native, x, codebook)
        results.append((*step[:-1], *native.code_statistics(x, step.indices, 64, True)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_sums_do_not_lose_small_rows(isa: str) -> None:
    """Float32 running sums would stop at 2^24."""
    x = torch.ones(1, 5000, 3)
    x[0, 0] = 2.0**25
    counts, sums = native.code_statistics(x, torch.zeros(1, 5000, dtype=torch.int64), 2, True)
    assert counts.tolist() == [5000, 0]
    assert sums.tolist() == [[2.0**25 + 4999 + 1] * 3, [0.0] * 3]


@over_dtypes
@over_layouts
def test_gather(isa: str, layout: str, dtype: str) -> None:
    out = poisoned(like(LAYOUTS[layout](3, 75, 35), DTYPES[dtype]))
    indices = torch.randint(0, 50, (3, 75))
    for codebook in (torch.randn(50, 35), torch.randn(50, 35).to(out.dtype)):
        native.gather_codes(codebook, indices, out)
        assert torch.equal(out, codebook[indices].to(out.dtype))


@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
@over_dtypes
@over_layouts
@over_shapes
def test_backward(isa: str, shape: tuple[int, int, int, int], layout: str, dtype: str, gradient: str) -> None:
    b, m, d, k = shape
    x = like(LAYOUTS[layout](b, m, d), DTYPES[dtype])
    codebook, indices = torch.randn(k, d), torch.randint(-1, k, (b, m))
    valid = (indices >= 0).sum()
    upstream = like(LAYOUTS["channel_first" if layout == "channel_last" else layout](b, m, d), x.dtype)
    for grad, loss in ((upstream, torch.tensor(0.7)), (upstream, None), (None, torch.tensor(-2.0))):
        out, want = poisoned(x), poisoned(x)
        for backend, to in ((native, out), (reference, want)):
            backend.vector_quantize_backward(grad, loss, x, codebook, indices, valid, 0.3, gradient, to)
        tolerance = {"f32": 2e-5, "bf16": 1e-2, "f16": 2e-3}[dtype]
        torch.testing.assert_close(out, want, rtol=tolerance, atol=tolerance)
        assert (out[indices < 0] == 0).all()


@pytest.mark.parametrize("normalize", [False, True], ids=["l2", "cosine"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("counts_dtype", [torch.int64, torch.float32], ids=["int_counts", "float_counts"])
def test_ema_update(isa: str, counts_dtype: torch.dtype, decay: float, normalize: bool) -> None:
    k, d = 130, 37
    state = [torch.randn(k, d), 5 * torch.rand(k), torch.randn(k, d)]
    counts, sums = torch.randint(0, 9, (k,)).to(counts_dtype), torch.randn(k, d)
    got, want = [t.clone() for t in state], [t.clone() for t in state]
    native.ema_update_(*got, counts, sums, decay, 1e-5, normalize)
    reference.ema_update_(*want, counts, sums, decay, 1e-5, normalize)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_ema_update_of_an_empty_batch_changes_nothing(isa: str) -> None:
    state = [torch.randn(5, 3), torch.rand(5), torch.randn(5, 3)]
    got = [t.clone() for t in state]
    native.ema_update_(*got, torch.zeros(5, dtype=torch.int64), torch.randn(5, 3), 0.5, 1e-5, False)
    for a, b in zip(got, state, strict=True):
        assert torch.equal(a, b)


def test_ema_averages_of_dead_codes_go_to_zero_and_not_into_subnormals() -> None:
    """Subnormal averages made the update ten times slower after some hundred steps."""
    codebook, embed_avg = torch.ones(70, 9), torch.full((70, 9), 1.2e-38)
    cluster_size = torch.full((70,), 1.2e-38)
    counts, sums = torch.zeros(70, dtype=torch.int64), torch.zeros(70, 9)
    counts[3] = 5
    native.ema_update_(codebook, cluster_size, embed_avg, counts, sums, 0.5, 1e-5, False)
    dead = torch.arange(70) != 3
    assert (embed_avg[dead] == 0).all()
    assert (cluster_size[dead] == 0).all()
    assert codebook.isfinite().all()
