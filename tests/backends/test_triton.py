"""What is special to the Triton backend: launches, divided codes, deterministic sums, its two epilogues.

Semantics common to all backends are tested in ``tests/operators``.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support import check_found, quantize_into
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

pytest.importorskip("triton")

from vq_kernels import FusedVectorQuantizer
from vq_kernels.backends import QuantizeResult, get_backend, reference

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _available() -> None:
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")


def quantize(
    x: Tensor, codebook: Tensor, mask: Tensor | None = None, precision: str = "exact"
) -> QuantizeResult:
    out = torch.full_like(x, torch.nan)
    return quantize_into(out, get_backend("triton"), x, codebook, mask, precision)


def test_importing_the_backend_does_not_import_triton() -> None:
    # torch imports triton itself when it is there, so only a fresh import of ours can be looked at.
    code = "import sys, torch; before = 'triton' in sys.modules; import vq_kernels.backends.triton; "
    code += "sys.exit(not before and 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("x", "codebook", "words"),
    [
        (torch.empty(1, 2, 3, dtype=torch.float64), None, "float64"),
        (torch.empty(1, 2, 3, device="meta"), None, "meta"),
        (torch.empty(1 << 16, 1 << 16, 3, device="meta"), None, "meta"),
        (torch.empty(1, 1, 1).expand(1 << 16, 1 << 15, 1), None, "rows"),
        # Fewer than 2^31, but the number of a row beyond the last of the last tile would overflow.
        (torch.empty(1, 1, 1).expand(1, 2**31 - 127, 1), None, "rows"),
    ],
    ids=["float64", "meta", "meta_rows", "too_many_rows", "last_tile_overflows"],
)
def test_says_why_tensors_are_not_served(
    x: Tensor, codebook: Tensor | None, words: str, device: torch.device
) -> None:
    if words == "rows":
        x = x.to(device)
    reason = get_backend("triton").unsupported_reason("nearest_code", x, codebook)
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
@pytest.mark.parametrize(("n", "k"), [(1, 700), (3, 257), (70, 640), (130, 129)])
def test_divided_codes(n: int, k: int, precision: str, device: torch.device) -> None:
    """Few rows: several programs share the codes, and the partial results are merged in code order."""
    x, codebook = torch.randn(1, n, 12, device=device), torch.randn(k, 12, device=device)
    half = k // 2
    codebook[half:] = codebook[torch.arange(k - half, device=device) % half]
    x[0, 0] = codebook[-1]
    got = get_backend("triton").nearest_code(x, codebook, "l2", precision)
    check_found(got[0], x[0], codebook, precision, half)


def test_the_divided_cases_are_divided(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("the sizes are the interpreter's")
    from vq_kernels.backends.triton.nearest import search

    def splits(n: int, k: int) -> int:
        indices = torch.empty(1, n, dtype=torch.int64)
        return search(torch.randn(1, n, 2), torch.randn(k, 2), None, "l2", "fast", indices=indices).splits

    assert [splits(n, k) for n, k in [(1, 700), (3, 257), (70, 640), (130, 129)]] == [4, 3, 2, 1]


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("n", [5, 200])
def test_quantize_divided_and_not(n: int, masked: bool, precision: str, device: torch.device) -> None:
    codebook = torch.randn(300, 12, device=device)
    x = codebook[torch.randint(0, 300, (2, n), device=device)] + 0.01 * torch.randn(2, n, 12, device=device)
    x[1, 2, 3] = torch.nan if not masked else 0.0
    mask = torch.rand(2, n, device=device) < 0.6 if masked else None
    got = quantize(x, codebook, mask, precision)
    want = quantize_into(torch.empty_like(x), reference, x, codebook, mask, precision)
    assert torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.quantized, want.quantized, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(got.loss, want.loss, equal_nan=True)
    assert torch.equal(got.valid_rows, want.valid_rows)
    assert torch.equal(got.counts, want.counts)
    torch.testing.assert_close(got.sums, want.sums)


# --- deterministic sums ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_do_not_depend_on_the_order_of_rows(dtype: str, device: torch.device) -> None:
    """Any order of the atomics gives the same bits: here the rows themselves are shuffled."""
    x = torch.randn(1, 300, 9, device=device).to(DTYPES[dtype])
    indices = torch.randint(0, 4, (1, 300), device=device)
    backend = get_backend("triton")
    counts, sums = backend.code_statistics(x, indices, 5, False)
    order = torch.randperm(300, device=device)
    again_counts, again = backend.code_statistics(
        x[:, order].contiguous(), indices[:, order].contiguous(), 5, False
    )
    assert torch.equal(sums, again)
    assert torch.equal(counts, again_counts)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 3e38])
def test_sums_at_any_scale(scale: float, device: torch.device) -> None:
    """One unit of the fixed-point sums is relative to the largest entry, so their error is too."""
    x = (torch.rand(1, 100, 3, device=device, dtype=torch.float64) * scale).float()
    x[0, ::2] *= -0.9
    indices = torch.arange(100, device=device)[None] // 2
    _, sums = get_backend("triton").code_statistics(x, indices, 50, False)
    truth = x.double().view(50, 2, 3).sum(1)
    assert (sums.double() - truth).abs().max() <= 2.0**-24 * truth.abs().max() + 2.0**-149


def test_sums_beside_an_outlier(device: torch.device) -> None:
    """A row 10^6 times larger than the others costs the others six digits of eighteen."""
    x = torch.randn(1, 64, 4, device=device)
    x[0, 5] = 1e6
    indices = torch.arange(64, device=device)[None]
    _, sums = get_backend("triton").code_statistics(x, indices, 64, False)
    torch.testing.assert_close(sums, x[0], rtol=2.0**-23, atol=1e-9)


def test_a_rule_chooses_the_copies() -> None:
    from vq_kernels.backends.triton.statistics import copies

    assert [copies(*shape) for shape in [(1, 1), (128, 64), (512, 64), (1024, 64), (65536, 256)]] == [
        8,
        8,
        2,
        1,
        1,
    ]


# --- launches -------------------------------------------------------------------------------------


class CountOperators(TorchDispatchMode):
    """Operators of torch that compute: allocations and views launch nothing."""

    FREE = ("empty", "view", "as_strided", "slice", "detach", "select", "expand", "alias", "squeeze")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not any(word in func.__name__ for word in self.FREE):
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[str]:
    if device.type != "cpu":
        pytest.skip("counts the interpreter's launches")
    from triton.runtime import interpreter

    names: list[str] = []
    run = interpreter.GridExecutor.__call__

    def counted(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        names.append(self.fn.__name__)
        with _disable_current_modes():  # the interpreter itself computes with torch
            return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    return names


@pytest.mark.parametrize("n", [4, 200], ids=["divided", "many_rows"])
def test_a_training_step_takes_six_launches(n: int, launches: list[str], device: torch.device) -> None:
    """Of the whole layer: nothing else computes or copies, not even the codes that the EMA overwrites."""
    layer = FusedVectorQuantizer(8, 256, backend="triton").to(device)
    x = torch.randn(1, n, 8, device=device, requires_grad=True)
    grad, one = torch.ones_like(x), torch.ones((), device=device)
    before = layer.codebook.clone()
    with CountOperators() as operators:
        quantized, _, loss = layer(x)
        torch.autograd.backward([quantized, loss], [grad, one])
    assert not torch.equal(layer.codebook, before)
    assert launches == [
        "prepare_kernel",
        "search_kernel",
        "resolve_kernel",
        "write_kernel",
        "ema_kernel",
        "backward_kernel",
    ]
    ours = ("vector_quantize", "ema_update_", "vector_quantize_backward")
    assert [name for name in operators.names if not name.startswith(ours)] == []


def test_search_takes_three_launches(launches: list[str], device: torch.device) -> None:
    x, codebook = torch.randn(1, 200, 8, device=device), torch.randn(256, 8, device=device)
    backend = get_backend("triton")
    backend.nearest_code(x, codebook, "l2", "exact")
    backend.nearest_code(x, codebook, "l2", "fast")
    assert launches == [
        "prepare_kernel",
        "search_kernel",
        "resolve_kernel",
        "prepare_kernel",
        "search_kernel",
    ]


# --- paths the interpreter replaces -----------------------------------------------------------------


@pytest.mark.parametrize("dtypes", [("f32", "f32"), ("bf16", "f32"), ("f16", "f16")])
def test_rows_that_are_not_resident(dtypes: tuple[str, str], device: torch.device) -> None:
    dim = 100
    x = torch.randn(1, 20, dim, device=device).to(DTYPES[dtypes[0]])
    codebook = torch.randn(70, dim, device=device).to(DTYPES[dtypes[1]])
    for precision in ("exact", "high", "fast"):
        got = get_backend("triton").nearest_code(x, codebook, "l2", precision)
        check_found(got[0], x[0], codebook, precision)


def test_two_smallest_is_the_same_by_both_ways(device: torch.device) -> None:
    """The interpreter takes a short cut in the epilogue; here it runs what a GPU runs."""
    import triton
    import triton.language as tl

    from vq_kernels.backends.triton.common import interpreted, two_smallest

    if not interpreted():
        pytest.skip("compiled kernels have one way")
    namespace = {"triton": triton, "tl": tl, "two_smallest": two_smallest}

    @triton.jit
    def kernel(even, odd, low, high, INTERPRETED: tl.constexpr):
        at = (
            tl.arange(0, 2)[:, None, None] * 32
            + tl.arange(0, 8)[None, :, None] * 4
            + tl.arange(0, 4)[None, None, :]
        )
        a, b = two_smallest(tl.load(even + at), tl.load(odd + at), INTERPRETED)
        to = tl.arange(0, 2)[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(low + to, a)
        tl.store(high + to, b)

    kernel.fn.__globals__.update(namespace)
    even, odd = torch.randperm(128).float().view(2, 2, 8, 4)
    expected = torch.cat([even, odd], 1).sort(1).values[:, :2]
    for interpreted_way in (True, False):
        low, high = torch.full((2, 2, 4), torch.nan)
        kernel[(1,)](even.contiguous(), odd.contiguous(), low, high, interpreted_way)
        assert torch.equal(low, expected[:, 0])
        assert torch.equal(high, expected[:, 1])


def test_every_stored_configuration_can_be_looked_up() -> None:
    from vq_kernels.backends.triton.plan import make_config, make_plan
    from vq_kernels.backends.triton.tuned import TABLE

    for architecture in [*TABLE, 86, 89, 103, 121]:
        for x, codebook in [("f32", "f32"), ("bf16", "f32"), ("bf16", "bf16")]:
            plan = make_plan(DTYPES[x], DTYPES[codebook], "l2", "exact")
            for dim in (1, 16, 17, 64, 65, 256, 257, 4096):
                config = make_config(architecture, plan, dim)
                assert 16 <= config.depth <= max(16, 2 * dim)
                # Codes are padded to a multiple of 128, and the last bits of a score hold a column.
                assert config.codes in (16, 32, 64, 128)
