"""Every operation x backend x dtype x layout x odd size, against plain tensor arithmetic in float64."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from support import DTYPES, LAYOUTS, float64_argmin, is_interpreted, rows_of, sizes_for
from torch import Tensor

import vq_kernels as vq
from vq_kernels.devices import current_device_of
from vq_kernels.operators.quantize import vector_quantize_backward

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def make(
    layout: str, size: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    batch, inner, dim, codebook_size = size
    channel_dim, build = LAYOUTS[layout]
    x = build(batch, inner, dim, dtype)
    return _to(x, device), torch.randn(codebook_size, dim, device=device), channel_dim


def _to(x: Tensor, device: torch.device) -> Tensor:
    """On the device with the same strides, which ``.to`` would not keep for views."""
    if device.type == "cpu":
        return x
    storage = torch.tensor([], dtype=x.dtype).set_(x.untyped_storage()).to(device)
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    unit = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    return {"rtol": unit, "atol": unit}


@layouts
@dtypes
def test_nearest_code(layout: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    for size in sizes_for(backend, layout, dtype):
        x, codebook, channel_dim = make(layout, size, dtype, device)
        got = vq.nearest_code(x, codebook, channel_dim=channel_dim, backend=backend)
        shape = list(x.shape)
        shape.pop(channel_dim)
        assert list(got.shape) == shape
        assert got.dtype == torch.int64
        assert torch.equal(got.reshape(-1), float64_argmin(rows_of(x, channel_dim), codebook)), size


@dtypes
@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_gather_codes(dtype: torch.dtype, channel_dim: int, backend: str, device: torch.device) -> None:
    codebook = torch.randn(17, 9, device=device).to(dtype)
    for shape in [(), (1,), (63,), (2, 5), (3, 4, 5), (2, 3, 2, 2), (0, 4)]:
        if channel_dim == 1 and not shape:
            continue
        indices = torch.randint(0, 17, shape, device=device)
        got = vq.gather_codes(codebook, indices, channel_dim=channel_dim, backend=backend)
        want = codebook[indices]
        assert torch.equal(got, want.movedim(-1, 1) if channel_dim == 1 else want)
        assert got.is_contiguous()


@layouts
@dtypes
def test_code_statistics(layout: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    for size in sizes_for(backend, layout, dtype):
        x, _, channel_dim = make(layout, size, dtype, device)
        codebook_size = size[3]
        rows = rows_of(x, channel_dim)
        flat = torch.randint(-1, codebook_size, (rows.shape[0],), device=device)
        shape = list(x.shape)
        shape.pop(channel_dim)
        args = (x, flat.view(shape), codebook_size)
        counts, sums = vq.code_statistics(*args, channel_dim=channel_dim, backend=backend)
        kept = flat >= 0
        want_counts = torch.bincount(flat[kept], minlength=codebook_size)
        want = torch.zeros(codebook_size, rows.shape[1], dtype=torch.float64, device=device)
        want.index_add_(0, flat[kept], rows[kept].double())
        assert torch.equal(counts, want_counts)
        assert counts.dtype == torch.int64
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums.double(), want, rtol=1e-5, atol=1e-5)


def test_code_statistics_are_bitwise_reproducible(backend: str, device: torch.device) -> None:
    x = torch.randn(1134, 19, device=device) * 10.0 ** torch.randint(-3, 4, (1134, 1), device=device)
    for codebook_size in (1, 3, 64):
        indices = torch.randint(0, codebook_size, (1134,), device=device)
        counts, sums = vq.code_statistics(x, indices, codebook_size, backend=backend)
        before = torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                again = vq.code_statistics(x, indices, codebook_size, backend=backend)
                assert torch.equal(again[0], counts)
                assert torch.equal(again[1], sums)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalize"])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (129, 33), (300, 64)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_ema_update(size: tuple[int, int], normalize: bool, backend: str, device: torch.device) -> None:
    codebook_size, dim = size
    decay, eps = 0.9, 1e-5
    codebook, embed_avg = torch.randn(2, codebook_size, dim, device=device).unbind()
    cluster_size = torch.rand(codebook_size, device=device) * 5
    counts = torch.randint(0, 7, (codebook_size,), device=device) + (codebook_size == 1)
    sums = torch.randn(codebook_size, dim, device=device)

    n = decay * cluster_size.double() + (1 - decay) * counts
    m = decay * embed_avg.double() + (1 - decay) * sums
    want = m / ((n + eps) / (n.sum() + codebook_size * eps) * n.sum())[:, None]
    if normalize:
        want = m / m.norm(dim=1, keepdim=True)

    versions = [t._version for t in (codebook, cluster_size, embed_avg)]
    vq.ema_update_(
        codebook, cluster_size, embed_avg, counts, sums,
        decay=decay, eps=eps, normalize=normalize, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(cluster_size.double(), n, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embed_avg.double(), m, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(codebook.double(), want, rtol=2e-5, atol=1e-5)
    changed = [t._version for t in (codebook, cluster_size, embed_avg)]
    assert all(after > before for before, after in zip(versions, changed, strict=True))


@layouts
@dtypes
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_vector_quantize(
    layout: str, dtype: torch.dtype, masked: bool, backend: str, device: torch.device
) -> None:
    for size in sizes_for(backend, layout, dtype):
        x, codebook, channel_dim = make(layout, size, dtype, device)
        rows = rows_of(x, channel_dim)
        shape = list(x.shape)
        shape.pop(channel_dim)
        mask = torch.rand(shape, device=device) > 0.4 if masked else None
        keep = torch.ones(rows.shape[0], dtype=torch.bool, device=device)
        keep = keep if mask is None else mask.reshape(-1)
        index = float64_argmin(rows, codebook)

        got = vq.vector_quantize(
            x, codebook, channel_dim=channel_dim, mask=mask, backend=backend,
            commitment_weight=0.25, codebook_weight=0.5,
        )  # fmt: skip

        assert got.quantized.shape == x.shape
        assert got.quantized.dtype == dtype
        assert got.quantized.stride() == torch.empty_like(x).stride()
        assert torch.equal(got.indices.reshape(-1), torch.where(keep, index, -1))
        want = torch.where(keep[:, None], codebook[index].to(dtype), 0)
        if dtype == torch.bfloat16 and is_interpreted(backend):
            # Triton's interpreter truncates to bfloat16; a GPU rounds to nearest.
            torch.testing.assert_close(rows_of(got.quantized, channel_dim), want, rtol=8e-3, atol=0)
        else:
            assert torch.equal(rows_of(got.quantized, channel_dim), want)
        error = (codebook[index].double() - rows.double()).square()[keep]
        want_loss = 0.75 * error.mean() if keep.any() else torch.zeros(())
        assert got.loss.dtype == torch.float32
        assert got.loss.shape == ()
        torch.testing.assert_close(got.loss.double().cpu(), want_loss.double().cpu(), rtol=2e-5, atol=1e-9)
        counts, sums = vq.code_statistics(x, got.indices, size[3], channel_dim=channel_dim, backend=backend)
        assert torch.equal(got.counts, counts)
        torch.testing.assert_close(got.sums, sums, rtol=1e-5, atol=1e-5)


def test_vector_quantize_without_statistics(backend: str, device: torch.device) -> None:
    x, codebook = torch.randn(9, 4, device=device), torch.randn(5, 4, device=device)
    with_them = vq.vector_quantize(x, codebook, backend=backend)
    without = vq.vector_quantize(x, codebook, statistics=False, backend=backend)
    assert without.counts.shape == (0,)
    assert without.sums.shape == (0, 4)
    assert torch.equal(without.indices, with_them.indices)
    assert torch.equal(without.loss, with_them.loss)


@layouts
@dtypes
@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
def test_backward_equals_the_reference(
    layout: str, dtype: torch.dtype, gradient: str, kernel_backend: str, device: torch.device
) -> None:
    """The reference's own gradients are checked by gradcheck in test_gradients.py."""
    for size in sizes_for(kernel_backend, layout, dtype):
        x, codebook, channel_dim = make(layout, size, dtype, device)
        shape = list(x.shape)
        shape.pop(channel_dim)
        indices = torch.randint(-1, size[3], shape, device=device)
        valid = (indices >= 0).sum()
        upstream = {
            "same_layout": torch.randn_like(x),
            "contiguous": torch.randn(x.shape, device=device).to(dtype),
            "expanded": torch.randn((), device=device).to(dtype).expand(x.shape),
            "none": None,
        }
        grad_loss = torch.tensor(1.7, device=device)
        for name, grad in upstream.items():
            for loss_grad in (grad_loss, None):
                if grad is None and loss_grad is None:
                    continue
                args = (grad, loss_grad, x, codebook, indices, valid, 0.3, gradient, channel_dim)
                got = vector_quantize_backward(*args, kernel_backend)
                want = vector_quantize_backward(*args, "reference")
                assert got.stride() == want.stride(), name
                torch.testing.assert_close(got, want, **tolerance(dtype), msg=lambda m, n=name: f"{n}: {m}")


def test_float64_runs_on_the_reference() -> None:
    x, codebook = torch.randn(9, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    got = vq.vector_quantize(x, codebook)
    assert got.loss.dtype == got.sums.dtype == torch.float64
    assert torch.equal(got.indices, float64_argmin(x, codebook))


def test_codebook_of_the_dtype_of_x(backend: str, device: torch.device) -> None:
    for dtype in DTYPES:
        x, codebook = torch.randn(2, 41, 12, device=device).to(dtype).unbind()
        got = vq.vector_quantize(x, codebook[:7], backend=backend)
        assert torch.equal(got.indices, float64_argmin(x, codebook[:7]))
        assert torch.equal(got.quantized, codebook[:7][got.indices])


def test_a_backend_is_called_with_the_tensors_gpu_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are launched on the current device; a tensor may lie on another."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(device.index))
    for index, made_current in ((1, 1), (0, None)):
        tensor = SimpleNamespace(device=torch.device("cuda", index))
        with current_device_of(tensor) as current:  # type: ignore[arg-type]
            assert current == made_current
    with current_device_of(torch.empty(0)) as current:
        assert current is None
