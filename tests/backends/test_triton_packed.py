"""A codebook packed once for the Triton search, read in place of one that each search prepares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import DTYPES
from torch import Tensor

pytest.importorskip("triton")

from vq_kernels.backends import QuantizeOptions, get_backend


@pytest.fixture(autouse=True)
def _available() -> None:
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")


def nearest(x: Tensor, codebook: Tensor, metric: str, precision: str, packed: object = None) -> Tensor:
    backend: Any = get_backend("triton")
    found: Tensor = backend.nearest_code(x[None], codebook, metric, precision, packed)
    return found


def refuse_to_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    from vq_kernels.backends.triton import nearest as module

    def prepare(*args: Any, **options: Any) -> None:
        raise AssertionError("prepared for one search")

    monkeypatch.setattr(module, "prepare", prepare)


@pytest.mark.parametrize(("k", "metric"), [(100, "l2"), (100, "cosine"), (1030, "l2")])
def test_packed_codes_are_not_prepared_again(
    k: int, metric: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of all dtypes and every precision: biases of rows that are not centred are others.

    Of more than 2^15 numbers a launch of its own excludes duplicates.
    """
    codebook = torch.randn(k, 32, device=device) + 3
    codebook[7:9] = codebook[5]
    x = torch.randn(20, 32, device=device) + 3
    x[4], x[6, 1] = codebook[8], torch.nan
    backend: Any = get_backend("triton")
    packed = backend.prepare_codebook(codebook, metric)
    cases = [(x.to(dtype), "exact") for dtype in DTYPES] + [(x, "high"), (x.half(), "fast")]
    want = [nearest(rows, codebook, metric, precision) for rows, precision in cases]
    refuse_to_prepare(monkeypatch)
    for (rows, precision), indices in zip(cases, want, strict=True):
        for _ in range(2):
            found = nearest(rows, codebook, metric, precision, packed)
            assert torch.equal(found, indices), (rows.dtype, precision)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "f16"])
def test_codes_of_16_bits(dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of their own dtype read them packed, others have them prepared."""
    codebook, x = torch.randn(200, 24, device=device).to(dtype), torch.randn(33, 24, device=device)
    packed = get_backend("triton").prepare_codebook(codebook, "l2")  # type: ignore[attr-defined]
    others = nearest(x, codebook, "l2", "exact")
    assert torch.equal(nearest(x, codebook, "l2", "exact", packed), others)
    want = nearest(x.to(dtype), codebook, "l2", "exact")
    refuse_to_prepare(monkeypatch)
    assert torch.equal(nearest(x.to(dtype), codebook, "l2", "exact", packed), want)


def test_a_step_zeroes_its_counters(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are zeroed where codes are prepared, if codes are prepared."""
    codebook, x = torch.randn(90, 16, device=device), torch.randn(1, 50, 16, device=device)
    mask = torch.rand(1, 50, device=device) < 0.7
    options = QuantizeOptions("l2", "exact", -1, statistics=True, keep_codes=True, backend=None)
    backend: Any = get_backend("triton")
    packed = backend.prepare_codebook(codebook, "l2")
    empty = torch.empty

    def dirty(*size: Any, **how: Any) -> Tensor:
        return empty(*size, **how).fill_(77)

    monkeypatch.setattr(torch, "empty", dirty)
    copies = [torch.zeros_like(codebook) for _ in range(2)]
    want = backend.vector_quantize(x, codebook, mask, options, torch.zeros_like(x), copies[0])
    got = backend.vector_quantize(x, codebook, mask, options, torch.zeros_like(x), copies[1], packed)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_codes_laid_out_otherwise_are_prepared(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 numbers do not divide what was padded for chunks of 16."""
    from vq_kernels.backends.triton import common, few, hopper
    from vq_kernels.backends.triton.packed import pack

    monkeypatch.setattr(common, "architecture", lambda device: 90)
    monkeypatch.setattr(hopper, "works_on", lambda device: False)
    monkeypatch.setattr(few, "limits", lambda architecture: (0, 0))
    codebook, x = torch.randn(300, 100, device=device), torch.randn(9, 100, device=device)
    packed = pack(codebook, "l2")
    assert packed.codes[torch.float32].high.shape[1] == 112
    for precision in ("exact", "fast"):
        want = nearest(x, codebook, "l2", precision)
        assert torch.equal(nearest(x, codebook, "l2", precision, packed), want)
    refuse_to_prepare(monkeypatch)
    nearest(x, codebook, "l2", "exact", packed)
    with pytest.raises(AssertionError, match="prepared for one search"):
        nearest(x, codebook, "l2", "fast", packed)
