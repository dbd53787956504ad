"""The edge cases of the contract, the same on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vq_kernels as vq

NONFINITE = [torch.nan, torch.inf, -torch.inf]
nonfinite = pytest.mark.parametrize("value", NONFINITE, ids=["nan", "inf", "minus_inf"])


def data(device: torch.device, n: int = 37, k: int = 19, d: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, d, device=device), torch.randn(k, d, device=device)


@nonfinite
@pytest.mark.parametrize("channel_first", [False, True], ids=["rows", "channel_first"])
def test_nonfinite_row(value: float, channel_first: bool, backend: str, device: torch.device) -> None:
    x, codebook = data(device)
    clean = vq.vector_quantize(x, codebook, backend=backend)
    x[5, 3] = value
    bad = torch.arange(37, device=device) == 5
    layout = {"channel_dim": 1 if channel_first else -1}
    given = x.T.contiguous()[None] if channel_first else x
    got = vq.vector_quantize(given, codebook, backend=backend, **layout)
    indices = got.indices.reshape(-1)
    quantized = got.quantized[0].T if channel_first else got.quantized

    assert indices[5] == 0
    assert torch.equal(indices[~bad], clean.indices[~bad])
    assert quantized[5].isnan().all()
    assert torch.equal(quantized[~bad], clean.quantized[~bad])
    assert got.loss.isnan()
    assert got.counts.sum() == 36
    assert got.sums.isfinite().all()
    assert vq.nearest_code(given, codebook, backend=backend, **layout).reshape(-1)[5] == 0
    counts, sums = vq.code_statistics(given, got.indices, 19, backend=backend, **layout)
    assert torch.equal(counts, got.counts)
    torch.testing.assert_close(sums, got.sums)


@nonfinite
def test_masked_nonfinite_row_is_not_seen(value: float, backend: str, device: torch.device) -> None:
    x, codebook = data(device)
    x[5, 3] = value
    mask = torch.arange(37, device=device) != 5
    got = vq.vector_quantize(x, codebook, mask=mask, backend=backend)
    assert got.indices[5] == -1
    assert (got.quantized[5] == 0).all()
    assert got.loss.isfinite()
    assert got.counts.sum() == 36


@nonfinite
def test_nonfinite_code_is_never_chosen(value: float, backend: str, device: torch.device) -> None:
    x, codebook = data(device)
    for metric in ("l2", "cosine"):
        for bad in ([0], [3, 7], [18]):
            broken = codebook.clone()
            broken[bad, 2] = value
            usable = [j for j in range(19) if j not in bad]
            want = torch.tensor(usable, device=device)[
                vq.nearest_code(x, codebook[usable], metric=metric, backend=backend)
            ]
            assert torch.equal(vq.nearest_code(x, broken, metric=metric, backend=backend), want)


def test_no_usable_code_gives_index_0(backend: str, device: torch.device) -> None:
    x, codebook = data(device)
    assert (vq.nearest_code(x, torch.full_like(codebook, torch.nan), backend=backend) == 0).all()


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((0, 6), -1), ((0, 4, 6), -1), ((2, 0, 6), -1), ((0, 6, 5), 1), ((2, 6, 0), 1)]
)
def test_empty_batch(shape: tuple[int, ...], channel_dim: int, backend: str, device: torch.device) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    codebook = torch.randn(4, 6, device=device, requires_grad=True)
    got = vq.vector_quantize(x, codebook, channel_dim=channel_dim, codebook_weight=0.5, backend=backend)
    assert got.quantized.shape == x.shape
    assert got.indices.numel() == 0
    assert got.loss == 0
    assert got.counts.sum() == 0
    assert (got.sums == 0).all()
    (got.loss + got.quantized.sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert codebook.grad is not None
    assert (codebook.grad == 0).all()


def test_fully_masked_batch(backend: str, device: torch.device) -> None:
    x, codebook = data(device)
    x.requires_grad_()
    mask = torch.zeros(37, dtype=torch.bool, device=device)
    got = vq.vector_quantize(x, codebook, mask=mask, backend=backend)
    assert got.loss == 0
    assert got.counts.sum() == 0
    assert (got.indices == -1).all()
    (got.loss + got.quantized.sum()).backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_ema_update_without_rows_changes_nothing(backend: str, device: torch.device) -> None:
    codebook, embed_avg = torch.randn(2, 5, 3, device=device).unbind()
    cluster_size = torch.rand(5, device=device)
    before = [t.clone() for t in (codebook, cluster_size, embed_avg)]
    counts, sums = torch.zeros(5, dtype=torch.int64, device=device), torch.zeros(5, 3, device=device)
    args = (codebook, cluster_size, embed_avg, counts, sums)
    vq.ema_update_(*args, decay=0.9, eps=1e-5, backend=backend)
    for a, b in zip(before, (codebook, cluster_size, embed_avg), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("normalize", [False, True], ids=["l2", "cosine"])
@pytest.mark.parametrize(("k", "d"), [(7, 3), (600, 65)])
def test_a_code_whose_sums_overflow_takes_no_part_in_an_ema_update(
    k: int, d: int, normalize: bool, backend: str, device: torch.device
) -> None:
    codebook, embed_avg, sums = torch.randn(3, k, d, device=device).unbind()
    cluster_size = torch.rand(k, device=device) + 1
    counts = torch.randint(1, 9, (k,), device=device)
    sums[0] *= 1e37  # held
    sums[1, d - 1] = torch.inf
    sums[2, 0] = -torch.inf
    sums[3] = torch.nan
    embed_avg[4, 1], sums[4, 1] = -3e38, 3e38  # their difference
    embed_avg[5, 0] = torch.inf  # spoilt before: its size falls, so that it is revived
    state = [codebook, cluster_size, embed_avg]
    before, want = [t.clone() for t in state], [t.clone() for t in state]
    step: dict[str, Any] = {"decay": 0.9, "eps": 1e-5, "normalize": normalize}
    vq.ema_update_(*want, counts, sums, **step, backend="reference")
    vq.ema_update_(*state, counts, sums, **step, backend=backend)
    for old, new, expected in zip(before, state, want, strict=True):
        assert torch.equal(new[1:5], old[1:5])
        torch.testing.assert_close(new, expected, rtol=2e-5, atol=1e-5, equal_nan=True)
    moved = torch.tensor([0, *range(6, k)], device=device)
    assert all(t[moved].isfinite().all() for t in state)
    assert not torch.equal(state[2][moved], before[2][moved])
    torch.testing.assert_close(cluster_size[5], before[1][5].lerp(counts[5].float(), 0.1))


def test_a_code_that_its_smoothed_size_would_make_infinite_stays(backend: str, device: torch.device) -> None:
    """Few rows for so many codes: smoothing divides by less than the rows that made up the average."""
    codebook, embed_avg = torch.zeros(2, 9, 3, device=device).unbind()
    embed_avg[0], embed_avg[1] = 3e38, 1e30
    cluster_size, counts = torch.zeros(2, 9, device=device).unbind()
    cluster_size[:2], counts[:2] = 1.0, 1.0
    state = (codebook, cluster_size, embed_avg)
    vq.ema_update_(*state, counts, embed_avg.clone(), decay=0.9, eps=10.0, backend=backend)
    assert torch.equal(codebook[0].cpu(), torch.zeros(3))
    assert (codebook[1] > 1e29).all()
    assert codebook.isfinite().all()


@pytest.mark.parametrize(
    ("n", "k", "d"), [(1, 1, 1), (1, 9, 1), (9, 1, 1), (9, 1, 7), (1, 300, 2), (2, 2, 200)]
)
def test_smallest_sizes(n: int, k: int, d: int, backend: str, device: torch.device) -> None:
    x, codebook = data(device, n, k, d)
    want = vq.vector_quantize(x, codebook, backend="reference")
    got = vq.vector_quantize(x, codebook, backend=backend)
    assert torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.loss, want.loss)


def test_a_scalar_row(backend: str, device: torch.device) -> None:
    x, codebook = data(device)
    got = vq.vector_quantize(x[0], codebook, backend=backend)
    assert got.indices.shape == ()
    assert got.quantized.shape == (6,)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the resident-set measurement is for CPU tensors")
@pytest.mark.parametrize("name", ["reference", "native"])
def test_peak_memory_is_flat_in_n_times_k(name: str) -> None:
    """N x K in float32 would be 1 GiB at the larger size; the peak grows with N + K D only."""
    import os
    import subprocess
    import sys

    from vq_kernels.backends import get_backend

    if (reason := get_backend(name).unavailable_reason()) is not None:
        pytest.skip(reason)
    program = (
        "import sys, resource, torch, vq_kernels as vq\n"
        "n, k = int(sys.argv[1]), int(sys.argv[2])\n"
        "x, e = torch.randn(n, 2), torch.randn(k, 2)\n"
        f"vq.vector_quantize(x[:64], e[:64], backend={name!r})\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"vq.vector_quantize(x, e, backend={name!r})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)\n"
    )
    n = 1 << 12
    used = {}
    for k in (512, 1 << 16):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.run(
            [sys.executable, "-c", program, str(n), str(k)],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
        used[k] = int(out.stdout)
    assert used[1 << 16] < 400_000, used  # KiB
