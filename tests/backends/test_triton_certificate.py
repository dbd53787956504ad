"""The Triton search's error bound at its limit: never a wrong index, and wrong ones once it is tightened.

The interpreter's matrix product rounds to nearest, far better than the tensor cores may. Here it is
replaced by the model that the bound assumes (``docs/certificate.md``): blocks of four products and the
accumulator, aligned to the largest and truncated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import exact_codes
from torch import Tensor

pytest.importorskip("triton")

from vq_kernels.backends import get_backend
from vq_kernels.backends.triton import certificate


@pytest.fixture(autouse=True)
def _interpreter_only(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("replaces the interpreter's matrix product")
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")


def truncate(v: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return np.trunc(v / unit) * unit


def unit_of(largest: np.ndarray) -> np.ndarray:
    """2^-23 of the power of two at or below each number."""
    _, exponent = np.frexp(np.where(largest > 0, largest, 1.0))
    return np.ldexp(1.0, exponent - 1 - 23)


def tensor_core_product(a: np.ndarray, b: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """a [M, D] times b [D, N] plus acc, in blocks of four, as the bound assumes it at worst."""
    total = acc.astype(np.float64)
    a, b = a.astype(np.float64), b.astype(np.float64)
    for start in range(0, a.shape[1], certificate.BLOCK):
        block = slice(start, start + certificate.BLOCK)
        terms = [total] + [np.outer(a[:, d], b[d]) for d in range(a.shape[1])[block]]
        unit = unit_of(np.max(np.abs(terms), axis=0))
        total = sum(truncate(term, unit) for term in terms)
        total = truncate(total, unit_of(np.abs(total)))
    return total.astype(np.float32)


@pytest.fixture
def worst_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        return interpreter.TensorHandle(tensor_core_product(a.data, b.data, d.data), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def search(x: Tensor, codebook: Tensor, metric: str = "l2", bound_scale: float = 1.0) -> Tensor:
    from vq_kernels.backends.triton.nearest import nearest_code

    return nearest_code(x[None], codebook, metric, "exact", bound_scale=bound_scale)[0]


def truncation_pair(dim: int, lead: float) -> tuple[Tensor, Tensor]:
    """One row and two codes whose order truncation reverses, float16, scores near zero.

    The products are a little over 1/2 and dim - 2 products just below the unit 2^-24 there, positive for
    the first code and negative for the second: all are lost. One more product is in favour of the second
    code by ``lead`` units, less than what the first code lost.
    """
    row = torch.full((dim,), 2.0**-12)
    row[0], row[1] = 0.5, 2.0**-7
    small = (1 - 2.0**-10) * 2.0**-12  # times 2^-12: just below 2^-24
    code = torch.full((dim,), small)
    code[0], code[1] = 1 + 2.0**-10, -lead / 2 * 2.0**-17
    other = torch.full((dim,), -small)
    other[0], other[1] = 1 + 2.0**-10, lead / 2 * 2.0**-17
    return row[None].half(), torch.stack([code, other]).half()


@pytest.mark.parametrize("dim", [16, 64, 200])
def test_truncation_at_the_bound(dim: int, worst_tensor_cores: None) -> None:
    lost = 2 * (dim - 2)
    x, codebook = truncation_pair(dim, round(0.9 * lost))
    assert exact_codes(x[None], codebook).item() == 0
    assert search(x, codebook).item() == 0


@pytest.mark.parametrize("dim", [64, 200])
def test_half_the_bound_is_not_enough(dim: int, worst_tensor_cores: None) -> None:
    x, codebook = truncation_pair(dim, round(0.9 * 2 * (dim - 2)))
    assert search(x, codebook, bound_scale=0.5).item() == 1


@pytest.mark.parametrize("dim", [4, 16, 64, 100, 512])
def test_the_accumulation_bound_is_within_a_factor_of_two_of_its_model(dim: int) -> None:
    row = np.full((1, dim), 2.0**-12)
    code = np.full((dim, 1), (1 - 2.0**-10) * 2.0**-12)
    row[0, 0], code[0, 0] = 0.5, 1.0
    computed = tensor_core_product(row, code, np.zeros((1, 1), np.float32))
    error = abs(float((row @ code)[0, 0]) - float(computed[0, 0]))
    bound = certificate.accumulation(dim) * float((np.abs(row) @ np.abs(code))[0, 0])
    assert error <= bound
    assert dim < 16 or error > bound / 2


def residual_pair(dim: int, lead: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """One row and two opposite codes; what the row's float16 part misses reverses their order.

    Entries of the row are +-1 plus nearly half a unit of float16, which one part loses, all to the side of
    the first code; an exact entry favours the second code by ``lead`` times that.
    """
    lost = 2.0**-12 - 2.0**-18
    row = torch.ones(dim)
    row[1::2] = -1.0
    row += lost
    units = round(lead * dim * lost * 2.0**9)
    row[0] -= units * 2.0**-9
    code = torch.full((dim,), 2.0)
    return row[None].to(dtype), torch.stack([code, -code])


@pytest.mark.parametrize("dim", [32, 64, 200])
def test_one_product_at_its_bound(dim: int, worst_tensor_cores: None) -> None:
    """The first pass of the cascade: what the missing parts could change is left to the second."""
    from vq_kernels.backends.triton.nearest import open_share

    x, codebook = residual_pair(dim, 0.8)
    assert exact_codes(x[None], codebook, "cosine").item() == 0
    assert search(x, codebook, "cosine").item() == 0
    assert open_share(x[None], codebook, "cosine") == 1.0


@pytest.mark.parametrize("dim", [32, 64, 200])
def test_half_the_bound_of_one_product_is_not_enough(dim: int, worst_tensor_cores: None) -> None:
    x, codebook = residual_pair(dim, 0.8)
    assert search(x, codebook, "cosine", bound_scale=0.5).item() == 1


@pytest.mark.parametrize("dtypes", ["f32-f32", "bf16-f32", "f16-f32"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_cascade_finds_what_the_reference_finds(
    dtypes: str, metric: str, worst_tensor_cores: None
) -> None:
    """Rows half way between two codes, a hair off either way, where one product decides nothing."""
    from vq_kernels.backends.triton.nearest import open_share

    names = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    codebook = torch.randn(70, 48)
    if metric == "cosine":
        codebook = torch.nn.functional.normalize(codebook, dim=1)
    pairs = torch.randint(0, 70, (2, 60))
    x = (codebook[pairs[0]] + codebook[pairs[1]]) / 2 + 1e-6 * torch.randn(60, 48)
    x = x.to(names[dtypes.split("-")[0]])
    truth = exact_codes(x[None], codebook, metric)[0]
    assert open_share(x[None], codebook, metric) > 0.5
    assert torch.equal(search(x, codebook, metric), truth)


def near_ties(dim: int, metric: str) -> tuple[Tensor, Tensor]:
    """96 rows about as far from both codes as float32 can tell."""
    codebook = torch.nn.functional.normalize(torch.randn(2, dim), dim=1)
    along = torch.randn(96, dim) if metric == "l2" else torch.zeros(96, dim)
    difference = torch.nn.functional.normalize(codebook[0] - codebook[1], dim=0)
    along -= (along @ difference)[:, None] * difference
    return codebook.mean(0) + along + 1e-7 * torch.randn(96, dim), codebook


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dim", [5, 64])
def test_rounding_near_ties(dim: int, metric: str, worst_tensor_cores: None) -> None:
    x, codebook = near_ties(dim, metric)
    truth = exact_codes(x[None], codebook, metric)[0]
    assert torch.equal(search(x, codebook, metric), truth)


def test_without_a_bound_near_ties_come_out_wrong(worst_tensor_cores: None) -> None:
    """Cosine scores are then near zero, where the column in their low bits hides nothing."""
    x, codebook = near_ties(64, "cosine")
    truth = exact_codes(x[None], codebook, "cosine")[0]
    assert not torch.equal(search(x, codebook, "cosine", bound_scale=0.0), truth)


OFFSETS = [0.0, 1e4]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtypes", ["f32-f32", "f16-f32", "bf16-f32", "bf16-bf16", "f16-f16"])
def test_midpoints_of_codes(dtypes: str, offset: float, worst_tensor_cores: None) -> None:
    """Rows half way between two codes, rounded to x's dtype."""
    names = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    x_dtype, codebook_dtype = (names[name] for name in dtypes.split("-"))
    codebook = (torch.randn(40, 20) + offset).to(codebook_dtype)
    pairs = torch.randint(0, 40, (2, 50))
    x = ((codebook[pairs[0]].float() + codebook[pairs[1]].float()) / 2).to(x_dtype)
    truth = exact_codes(x[None], codebook)[0]
    assert torch.equal(search(x, codebook), truth)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6, 1e20])
def test_an_outlier_code_costs_nothing_and_is_found(scale: float) -> None:
    """A code far outside the others, out of float16's range at their scale, is chosen where nearest."""
    codebook = torch.randn(70, 6) * scale
    codebook[33] = 1e7 * scale
    x = torch.randn(40, 6) * scale
    x[7] = 0.9e7 * scale
    truth = exact_codes(x[None], codebook)[0]
    assert truth[7] == 33
    assert torch.equal(search(x, codebook), truth)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e12])
def test_a_sample_of_equal_codes(scale: float) -> None:
    """The codes that set centre and scale are all zero; the others are not."""
    codebook = torch.zeros(256, 4)
    codebook[[5, 77, 250]] = torch.randn(3, 4) * scale
    x = torch.randn(20, 4) * scale
    truth = exact_codes(x[None], codebook)[0]
    assert torch.equal(search(x, codebook), truth)


def test_certain_rows_are_not_scored_again() -> None:
    """Clusters leave nothing for the second pass, nor do equal codes; codes a last bit apart leave all."""
    from vq_kernels.backends.triton.nearest import open_share

    codebook = torch.randn(128, 32)
    x = codebook[torch.randint(0, 64, (200,))] + 0.01 * torch.randn(200, 32)
    assert open_share(x[None], codebook) == 0.0
    codebook[64:] = codebook[:64]
    assert open_share(x[None], codebook) == 0.0
    codebook[64:] *= 1 + 2.0**-23
    assert open_share(x[None], codebook) == 1.0
