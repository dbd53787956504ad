"""The cases that a backend must get right on a GPU before anything is timed, each against the reference.

A case is small (below a second once its kernels are compiled) and says in its name what it is, so that
a wrong result, or a fault that ends the process, is known by (backend, D, case).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import vq_kernels as vq

from ..agreement import check_indices
from ..compare import PRECISION_UNITS
from .target import Target

DIMS = (64, 128, 8, 256, 100, 1, 200, 512)  # the most used first; 1, 100 and 200 have odd row strides
SIZES = ((63, 129), (1134, 777), (40_011, 6200))  # N, K: the last fills the GPU; N = K = 1 compiles its own
TINY_SIZES = ((19, 37),)
_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16
LAYOUTS = ("last", "first", "odd slice")
Pairs = dict[tuple[torch.dtype, torch.dtype], tuple[str, ...]]
# Dtypes of x and codebook. The layouts of each: compiling is what takes time, and the code that reads
# float16 differs from that for bfloat16 in a conversion alone.
PAIRS: Pairs = {
    (_F32, _F32): LAYOUTS,
    (_BF16, _BF16): LAYOUTS,
    (_BF16, _F32): LAYOUTS,
    (_F16, _F16): LAYOUTS[:1],
    (_F16, _F32): LAYOUTS[2:],
}
TINY_PAIRS: Pairs = {(_F32, _F32): LAYOUTS[1:]}
GRADIENTS = {"straight_through": 1.0, "rotation_trick": 0.25}  # and the commitment weight it is tried with
_UNIT = {_F32: 1e-4, _BF16: 2e-2, _F16: 3e-3}  # of gradients, which are rounded to x's dtype


@dataclass(frozen=True)
class Case:
    """One call, or a few, of one operation.

    ``layout`` is ``"last"`` (x ``[N, D]``), ``"first"`` (``[B, D, M]``) or ``"odd slice"`` (rows that begin
    one element into rows of D + 3: neither address nor stride is a multiple of 16 bytes). ``data`` is
    ``"random"``, ``"NaN rows"``, ``"equal codes"`` (the second half repeats the first) or ``"masked"``.
    """

    operation: str  # "quantize", "gradient", "search" or "statistics"
    x_dtype: torch.dtype
    codebook_dtype: torch.dtype
    d: int
    n: int
    k: int
    layout: str = "last"
    precision: str = "exact"
    data: str = "random"

    def __str__(self) -> str:
        dtypes = "/".join(str(t).removeprefix("torch.") for t in (self.x_dtype, self.codebook_dtype))
        shape = f"N={self.n} D={self.d} K={self.k}"
        return f"{self.operation} {self.precision} {dtypes} {self.layout} {self.data} {shape}"

    @property
    def channel_dim(self) -> int:
        return 1 if self.layout == "first" else -1

    @property
    def compiles(self) -> tuple[object, ...]:
        """Cases with equal values here compile the same kernels."""
        # Rows for every multiprocessor are not divided, and leave enough open for a middle pass.
        size = "one" if (self.n, self.k) == (1, 1) else "many" if self.n == SIZES[-1][0] else "few"
        values = (self.operation, self.precision, self.x_dtype, self.codebook_dtype, self.layout, self.d)
        return (*values, size, self.data == "masked")


def cases(d: int, target: Target) -> list[Case]:
    """All cases of one D, those first that matter most: exact, then the other precisions."""
    return list(_cases(d, target.choose(SIZES, TINY_SIZES), target.choose(PAIRS, TINY_PAIRS)))


def _cases(
    d: int, sizes: tuple[tuple[int, int], ...], pairs: dict[tuple[torch.dtype, torch.dtype], tuple[str, ...]]
) -> Iterator[Case]:
    small, most = sizes[0], list(pairs)[:2]
    for size in sizes:
        for pair, layouts in pairs.items():
            for layout in layouts:
                yield Case("quantize", *pair, d, *size, layout)
    for pair in most:
        for data in ("equal codes", "NaN rows", "masked"):
            yield Case("quantize", *pair, d, *small, data=data)
        yield Case("quantize", *pair, d, 1, 1)
    for pair, layouts in pairs.items():
        for layout in layouts if pair in most else layouts[:1]:
            yield Case("gradient", *pair, d, *small, layout)
        yield Case("statistics", *pair, d, *small)
    for precision in ("high", "fast"):
        for pair in pairs:
            for size in sizes[:2]:
                yield Case("search", *pair, d, *size, precision=precision)
            yield Case("search", *pair, d, *small, precision=precision, data="equal codes")


def check_case(case: Case, backend: str, target: Target) -> None:
    """Compare one case with the reference.

    Raises:
        AssertionError: the results differ; the message says in what.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.n + 31 * case.d + 7 * case.k)
        x, codebook, mask = make_inputs(case, target)
        _CHECKS[case.operation](case, x, codebook, mask, backend)
    target.synchronize()


def make_inputs(case: Case, target: Target) -> tuple[Tensor, Tensor, Tensor | None]:
    """x of the case's layout, codebook ``[K, D]``, and a mask of x's shape without D where there is one."""
    n, d, k = case.n, case.d, case.k
    codebook = torch.randn(k, d).to(case.codebook_dtype)
    if case.data == "equal codes":
        codebook[(k + 1) // 2 :] = codebook[: k // 2].clone()
    rows = torch.randn(n, d)
    if case.data == "NaN rows":
        rows[::5, d // 2] = torch.nan
        rows[3::7, 0] = torch.inf
    x = rows.to(target.device, case.x_dtype)
    if case.layout == "first":
        batch = next(b for b in (3, 2, 1) if n % b == 0)
        x = x.view(batch, n // batch, d).transpose(1, 2).contiguous()  # [B, D, M]
    elif case.layout == "odd slice":
        wide = torch.full((n, d + 3), torch.nan, device=target.device, dtype=case.x_dtype)
        wide[:, 1 : 1 + d] = x
        x = wide[:, 1 : 1 + d]
    mask = None
    if case.data == "masked":
        mask = (torch.rand(n) < 0.7).to(target.device)
    return x, codebook.to(target.device), mask


# --- the operations -------------------------------------------------------------------------------


def _check_quantize(case: Case, x: Tensor, codebook: Tensor, mask: Tensor | None, backend: str) -> None:
    def run(name: str) -> vq.functional.VectorQuantized:
        return vq.vector_quantize(x, codebook, mask=mask, channel_dim=case.channel_dim, backend=name)

    compare_quantized(run(backend), run("reference"))


def compare_quantized(got: vq.functional.VectorQuantized, want: vq.functional.VectorQuantized) -> None:
    """Indices, quantized rows and counts bit for bit, loss and sums to the rounding of their order.

    Raises:
        AssertionError: they differ; the message says in what.
    """
    wrong = got.indices != want.indices
    if bool(wrong.any()):
        first = int(wrong.flatten().nonzero()[0])
        pair = f"{int(got.indices.flatten()[first])} for {int(want.indices.flatten()[first])}"
        raise AssertionError(f"{int(wrong.sum())} of {wrong.numel()} indices differ, row {first}: {pair}")
    equal = torch.equal(got.quantized.nan_to_num(nan=9.0), want.quantized.nan_to_num(nan=9.0))
    assert equal, "quantized rows differ"
    assert torch.equal(got.counts, want.counts), "counts differ"
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=0.0, equal_nan=True)
    torch.testing.assert_close(got.sums, want.sums, rtol=1e-4, atol=1e-3)


def _check_gradient(case: Case, x: Tensor, codebook: Tensor, mask: Tensor | None, backend: str) -> None:
    upstream = torch.randn(x.shape).to(x.device, x.dtype)

    def run(name: str, gradient: str, weight: float) -> Tensor:
        rows = x.detach().requires_grad_()
        got = vq.vector_quantize(
            rows, codebook, commitment_weight=weight, gradient=gradient,
            channel_dim=case.channel_dim, backend=name,
        )  # fmt: skip
        outputs, gradients = (got.quantized, got.loss), (upstream, torch.ones_like(got.loss))
        return torch.autograd.grad(outputs, rows, gradients)[0]

    unit = _UNIT[case.x_dtype]
    for gradient, weight in GRADIENTS.items():
        got, want = run(backend, gradient, weight), run("reference", gradient, weight)
        try:
            torch.testing.assert_close(got, want, rtol=unit, atol=unit)
        except AssertionError as error:
            raise AssertionError(f"{gradient}: {error}") from error


def _check_search(case: Case, x: Tensor, codebook: Tensor, mask: Tensor | None, backend: str) -> None:
    exact = vq.nearest_code(x, codebook, backend="reference")
    got = vq.nearest_code(x, codebook, precision=case.precision, backend=backend)
    unit = PRECISION_UNITS[case.precision]
    check_indices(x, codebook, got, exact, input_unit=unit, ours_is_exact=False)
    if case.data == "equal codes":
        later = int((got >= (case.k + 1) // 2).sum())
        assert later == 0, f"{later} of {case.n} rows chose the later of two equal codes"


def _check_statistics(case: Case, x: Tensor, codebook: Tensor, mask: Tensor | None, backend: str) -> None:
    """Gathering, statistics of given indices, and the moving average of the codebook."""
    k = case.k
    indices = torch.randint(0, k, (3, 7)).to(x.device)
    for channel_dim in (-1, 1):
        got, want = (
            vq.gather_codes(codebook, indices, channel_dim=channel_dim, backend=name)
            for name in (backend, "reference")
        )
        assert torch.equal(got, want), f"gathered codes differ, channel_dim={channel_dim}"
    of_rows = torch.randint(-1, k, (case.n,)).to(x.device)
    counts, sums = vq.code_statistics(x, of_rows, k, backend=backend)
    want_counts, want_sums = vq.code_statistics(x, of_rows, k, backend="reference")
    assert torch.equal(counts, want_counts), "counts differ"
    torch.testing.assert_close(sums, want_sums, rtol=1e-4, atol=1e-3)
    embed, size = codebook.float(), torch.rand(k).to(x.device)
    average = torch.randn(k, case.d).to(x.device)
    for normalize in (False, True):
        ours, theirs = ([t.clone() for t in (embed, size, average)] for _ in range(2))
        for (e, n, m), name in ((ours, backend), (theirs, "reference")):
            vq.ema_update_(e, n, m, counts, want_sums, decay=0.9, eps=1e-5, normalize=normalize, backend=name)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-5)


_CHECKS = {
    "quantize": _check_quantize,
    "gradient": _check_gradient,
    "search": _check_search,
    "statistics": _check_statistics,
}
