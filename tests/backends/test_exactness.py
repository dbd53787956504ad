"""``precision="exact"`` against rational arithmetic: near-ties that a float32 or float64 score gets wrong."""

from __future__ import annotations

import pytest
import torch
from support import rational_argmin
from torch import Tensor

import vq_kernels as vq

N, K, D = 23, 37, 5


def _equal_codes() -> tuple[Tensor, Tensor]:
    codebook = torch.randn(K, D)
    codebook[K // 2 :] = codebook[: K - K // 2].clone()
    return torch.randn(N, D), codebook


def _one_ulp_apart() -> tuple[Tensor, Tensor]:
    codebook = torch.randn(1, D).repeat(K, 1)
    for j in range(1, K):
        column = j % D
        codebook[j, column] = torch.nextafter(codebook[j - 1, column], torch.tensor(torch.inf))
    return codebook[torch.randint(0, K, (N,))] + torch.randn(N, D), codebook


def _common_offset() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D) + 4096.0, torch.randn(K, D) + 4096.0


def _large_common_offset() -> tuple[Tensor, Tensor]:
    return 1e6 + torch.randn(N, D), 1e6 + torch.randn(K, D)


def _distant_rows() -> tuple[Tensor, Tensor]:
    # |x| / |e| of 1e15: a float64 (x - e)^2 cannot tell these codes apart.
    return 1e12 * torch.randn(N, D), 1e-3 * torch.randn(K, D)


def _denormals() -> tuple[Tensor, Tensor]:
    return 1e-41 * torch.randn(N, D), 1e-41 * torch.randn(K, D)


def _huge() -> tuple[Tensor, Tensor]:
    return 3e37 * torch.randn(N, D).clamp(-3, 3), 3e37 * torch.randn(K, D).clamp(-3, 3)


def _permuted_codes() -> tuple[Tensor, Tensor]:
    # Seen from (c, c, ..., c) all codes are equally far in real arithmetic; rounded sums differ by order.
    code = torch.randn(D)
    codebook = torch.stack([code[torch.randperm(D)] for _ in range(K)])
    return torch.randn(N, 1).repeat(1, D), codebook


def _grid() -> tuple[Tensor, Tensor]:
    return torch.randint(-2, 3, (N, D)).float() / 2, torch.randint(-1, 2, (K, D)).float()


def _midpoints() -> tuple[Tensor, Tensor]:
    codebook = torch.randn(K, D)
    pairs = torch.randint(0, K, (2, N))
    return (codebook[pairs[0]] + codebook[pairs[1]]) / 2, codebook


CASES = {
    f.__name__.strip("_"): f
    for f in (
        _equal_codes,
        _one_ulp_apart,
        _common_offset,
        _large_common_offset,
        _distant_rows,
        _denormals,
        _huge,
        _permuted_codes,
        _grid,
        _midpoints,
    )
}


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("case", CASES)
def test_exact_equals_rational_arithmetic(case: str, metric: str, backend: str, device: torch.device) -> None:
    x, codebook = CASES[case]()
    truth = rational_argmin(x, codebook, metric)
    got = vq.nearest_code(x.to(device), codebook.to(device), metric=metric, backend=backend)
    assert torch.equal(got.cpu(), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("codebook_dtype", ["float32", "same"])
@pytest.mark.parametrize("case", ["equal_codes", "common_offset", "midpoints", "grid"])
def test_exact_in_half_precision(
    case: str, codebook_dtype: str, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    x, codebook = (t.to(dtype) for t in CASES[case]())
    if codebook_dtype == "float32":
        codebook = codebook.float() + 1e-3 * torch.randn(codebook.shape)
    truth = rational_argmin(x, codebook)
    got = vq.nearest_code(x.to(device), codebook.to(device), backend=backend)
    assert torch.equal(got.cpu(), truth)


@pytest.mark.parametrize("rows", [3, N], ids=["few", "more"])
@pytest.mark.parametrize("exponents", [(60, 30), (55, 0), (40, 20)], ids=str)
def test_beyond_the_exact_score_all_backends_still_agree(
    exponents: tuple[int, int], rows: int, backend: str, device: torch.device
) -> None:
    """Large coordinates common to all: their terms drown the others in any sum of two float64 values."""
    x, codebook = torch.randn(rows, D), torch.randn(K, D)
    for column, exponent in enumerate(exponents):
        x[:, column] = codebook[:, column] = 2.0**exponent
    want = vq.nearest_code(x, codebook, backend="reference")
    assert torch.equal(vq.nearest_code(x.to(device), codebook.to(device), backend=backend).cpu(), want)


def test_a_rounded_score_fails_these_cases() -> None:
    """The cases have teeth: neither a float32 distance nor a float64 (x - e)^2 passes all of them."""
    wrong_float32, wrong_float64 = [], []
    for name, case in CASES.items():
        x, codebook = case()
        truth = rational_argmin(x, codebook)
        if not torch.equal(torch.cdist(x, codebook).argmin(1), truth):
            wrong_float32.append(name)
        if not torch.equal((x.double()[:, None] - codebook.double()).square().sum(-1).argmin(1), truth):
            wrong_float64.append(name)
    assert {"one_ulp_apart", "large_common_offset", "denormals"} <= set(wrong_float32)
    assert {"distant_rows", "permuted_codes"} <= set(wrong_float64)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_fused_step_finds_the_same_codes(metric: str, backend: str, device: torch.device) -> None:
    for name, case in CASES.items():
        x, codebook = (t.to(device) for t in case())
        want = vq.nearest_code(x, codebook, metric=metric, backend=backend)
        got = vq.vector_quantize(x, codebook, metric=metric, backend=backend)
        assert torch.equal(got.indices, want), name
        assert torch.equal(got.quantized, codebook[want]), name


@pytest.mark.parametrize("precision", ["high", "fast"])
def test_lower_precisions_stay_near_the_best(precision: str, backend: str, device: torch.device) -> None:
    x, codebook = torch.randn(67, 24), torch.randn(129, 24)
    got = vq.nearest_code(x.to(device), codebook.to(device), precision=precision, backend=backend).cpu()
    scores = 0.5 * codebook.double().square().sum(1) - x.double() @ codebook.double().T
    excess = scores.gather(1, got[:, None])[:, 0] - scores.amin(1)
    scale = x.norm(dim=1) * codebook.norm(dim=1).amax()
    # Two scores, each off by at most the unit roundoff of its inputs and of the accumulation.
    unit = 2.0**-22 if precision == "high" else 2.0**-7
    assert (excess <= 2 * unit * scale).all()


# --- batch invariance -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["equal_codes", "one_ulp_apart", "large_common_offset", "midpoints"])
def test_a_row_gets_the_same_code_alone_and_in_any_batch(
    case: str, backend: str, device: torch.device
) -> None:
    x, codebook = (t.to(device) for t in CASES[case]())
    together = vq.nearest_code(x, codebook, backend=backend)
    order = torch.randperm(N, device=device)
    shuffled = vq.nearest_code(x[order], codebook, backend=backend)
    assert torch.equal(shuffled, together[order])
    for row in (0, 1, N // 2, N - 1):
        alone = vq.nearest_code(x[row], codebook, backend=backend)
        assert torch.equal(alone, together[row])
    padded = torch.cat([torch.randn(50, D, device=device), x, torch.randn(3, D, device=device)])
    assert torch.equal(vq.nearest_code(padded, codebook, backend=backend)[50 : 50 + N], together)
    first = x.T.contiguous()[None]
    assert torch.equal(vq.nearest_code(first, codebook, channel_dim=1, backend=backend)[0], together)


def test_real_digits_get_the_same_code_alone_and_in_a_batch(backend: str, device: torch.device) -> None:
    from sklearn.datasets import load_digits

    digits = torch.tensor(load_digits().data[:120], dtype=torch.float32)
    x, codebook = digits[:80].to(device), digits[80:].to(device)
    together = vq.nearest_code(x, codebook, backend=backend)
    assert torch.equal(together.cpu(), rational_argmin(x.cpu(), codebook.cpu()))
    alone = torch.stack([vq.nearest_code(row, codebook, backend=backend) for row in x[:9]])
    assert torch.equal(alone, together[:9])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("exponent", [-1000, -620, -510, 0, 500, 515, 640, 1000])
def test_float64_of_any_magnitude(exponent: int, metric: str) -> None:
    """Whose products and squares are beyond the range of float64; rows of other magnitudes beside them."""
    x = torch.randn(30, 3, dtype=torch.float64)
    codebook = torch.randn(20, 3, dtype=torch.float64) * 2.0**exponent
    x[:20] *= 2.0**exponent
    found = vq.nearest_code(x, codebook, metric=metric, backend="reference")
    assert torch.equal(found, rational_argmin(x, codebook, metric))
    codebook[3] = 1e300  # far from all, and before the nearest
    found = vq.nearest_code(x, codebook, backend="reference")
    assert torch.equal(found, rational_argmin(x, codebook))
