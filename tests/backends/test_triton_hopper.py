"""The first pass for compute capability 9.0 (csrc/cuda/hopper_search.cu), run on the host between the
interpreted kernels of the Triton backend: the same indices as the reference, whatever the rows are."""

from __future__ import annotations

import sys

import pytest
import torch
from cuda_host import load_module, machine
from torch import Tensor

pytest.importorskip("triton")

import vq_kernels as vq
from vq_kernels.backends import QuantizeOptions, get_backend, native
from vq_kernels.backends.triton import hopper, nearest

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def on_host(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """The kernel built for the host, for any number of rows."""
    if (reason := get_backend("triton").unavailable_reason()) is not None:
        pytest.skip(f"triton: {reason}")
    if device.type != "cpu":
        pytest.skip("runs on the host; on a GPU the operations' tests meet the kernel itself")
    module = load_module()
    monkeypatch.setattr(hopper, "module", lambda: module.cuda)
    monkeypatch.setattr(hopper, "works_on", lambda device: True)
    monkeypatch.setattr(hopper, "least_rows", lambda device: 1)
    monkeypatch.setattr(hopper, "LEAST_CODES", 1)


def indices_of(x: Tensor, codebook: Tensor, **options: object) -> Tensor:
    """Of the Triton backend, after making sure that this kernel takes the search."""
    calls = []
    search = hopper.search

    def counted(*arguments: object, **keywords: object) -> None:
        calls.append(1)
        search(*arguments, **keywords)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper, "search", counted)
        found = vq.nearest_code(x, codebook, backend="triton", **options)  # type: ignore[arg-type]
    assert calls
    return found


def assert_nearest(x: Tensor, codebook: Tensor, **options: object) -> None:
    want = vq.nearest_code(x, codebook, backend="reference", **options)  # type: ignore[arg-type]
    assert torch.equal(indices_of(x, codebook, **options), want)


@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, BF16), (BF16, F32), (F16, F16)], ids=str)
@pytest.mark.parametrize(
    ("n", "d", "k"), [(300, 64, 300), (70, 100, 129), (40, 33, 128), (30, 200, 257)], ids=str
)
def test_nearest(dtypes: tuple[torch.dtype, torch.dtype], n: int, d: int, k: int) -> None:
    """Several blocks of rows, tiles of codes that are not full, every depth, rows that are not aligned."""
    assert_nearest(torch.randn(n, d).to(dtypes[0]), torch.randn(k, d).to(dtypes[1]))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_equal_codes_and_ties(metric: str) -> None:
    """Copies in the same tile and in a later one, and rows halfway between two codes."""
    codebook = torch.randn(300, 64)
    codebook[40:80] = codebook[:40].clone()
    codebook[150:] = codebook[:150].clone()
    x = torch.cat([codebook[torch.randint(0, 300, (40,))], (codebook[:60] + codebook[60:120]) / 2])
    assert_nearest(x, codebook, metric=metric)


@pytest.mark.parametrize(
    ("rows", "codes", "offset"),
    [
        (1.0, 1e-2, 0.0),
        (1e-3, 1.0, 0.0),
        (1e6, 1.0, 0.0),
        (1e-20, 1e-20, 0.0),
        (1e18, 1e18, 0.0),
        (1.0, 1.0, 1e3),
    ],
    ids=str,
)
def test_scales(rows: float, codes: float, offset: float) -> None:
    """A fresh codebook near zero, rows near the centre and far away, both ends of the range."""
    assert_nearest(rows * torch.randn(60, 64) + offset, codes * torch.randn(140, 64) + offset)


def test_one_far_row_does_not_hurt_the_others() -> None:
    """The number that makes scores positive is that of the row farthest out, of 128."""
    x = torch.randn(128, 64)
    codebook = torch.randn(200, 64)
    indices = torch.empty(1, 128, dtype=torch.int64)
    usual = int(nearest.search(x[None], codebook, None, "l2", "exact", indices=indices).counters[0])
    x[77] *= 30.0
    result = nearest.search(x[None], codebook, None, "l2", "exact", indices=indices)
    assert int(result.counters[0]) <= usual + 3
    assert_nearest(x, codebook)


def test_rows_that_do_not_count() -> None:
    """NaN and infinity give index 0, non-finite codes never win, and no code at all gives 0."""
    x, codebook = torch.randn(80, 64), torch.randn(130, 64)
    x[3, 5], x[9, 1], codebook[7, 3] = torch.nan, torch.inf, torch.nan
    assert_nearest(x, codebook)
    assert_nearest(x, torch.full_like(codebook, torch.nan))


@pytest.mark.parametrize("layout", ["first", "odd", "far apart"])
def test_layouts(layout: str) -> None:
    """Channel-first maps, rows at odd addresses, rows with gaps."""
    codebook = torch.randn(100, 64)
    if layout == "first":
        assert_nearest(torch.randn(3, 64, 50), codebook, channel_dim=1)
    elif layout == "odd":
        assert_nearest(torch.randn(150, 67)[:, 1:65], codebook)
    else:
        assert_nearest(torch.randn(150, 80)[:, :64], codebook)


def test_the_fused_step() -> None:
    """Mask, range of x, statistics: everything that the kernel leaves to those after it."""
    x, codebook, mask = torch.randn(1, 150, 64), torch.randn(90, 64), torch.rand(1, 150) < 0.7
    x[0, 11, 4] = torch.nan
    outputs = {}
    for name in ("triton", "reference"):
        options = QuantizeOptions("l2", "exact", -1, statistics=True, keep_codes=False, backend=None)
        quantized = torch.empty_like(x)
        outputs[name] = get_backend(name).vector_quantize(x, codebook, mask, options, quantized, None)
    got, want = outputs["triton"], outputs["reference"]
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.counts, want.counts)
    assert torch.equal(got.quantized.nan_to_num(), want.quantized.nan_to_num())
    torch.testing.assert_close(got.sums, want.sums)


@pytest.mark.parametrize("reverse", [False, True], ids=["in_order", "reverse"])
def test_the_order_of_threads_changes_nothing(reverse: bool) -> None:
    x, codebook = torch.randn(600, 64), torch.randn(260, 64)
    with machine(reverse=reverse, processors=2):
        assert_nearest(x, codebook)


def test_the_bound_is_needed() -> None:
    """Rows so near the middle of two codes that one product errs: half the bound takes the wrong one."""
    torch.manual_seed(3)
    codebook = torch.randn(64, 64)
    codebook[32:] = codebook[:32] + 2e-3 * torch.randn(32, 64)
    pair = torch.randint(0, 32, (400,))
    x = codebook[pair] + 1e-3 * torch.randn(400, 64)
    want = vq.nearest_code(x, codebook, backend="reference")
    wrong = {}
    for scale in (1.0, 0.0):
        got = nearest.nearest_code(x[None], codebook, "l2", "exact", bound_scale=scale)[0]
        wrong[scale] = int((got != want).sum())
    assert wrong[1.0] == 0
    assert wrong[0.0] > 0


def test_few_codes_are_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block reads its rows before it multiplies, which enough codes make up for."""
    monkeypatch.undo()
    monkeypatch.setattr(hopper, "works_on", lambda device: True)
    monkeypatch.setattr(hopper, "least_rows", lambda device: 1)
    for x_dtype, dtype in ((F32, F32), (BF16, F32), (BF16, BF16)):
        plan = nearest.first_pass(nearest.make_plan(x_dtype, dtype, "l2", "exact"), 64)
        x = torch.randn(1, 9, 64).to(x_dtype)
        assert [hopper.depth_for(x, k, plan) for k in (511, 512, 8192)] == [0, 64, 64]


@pytest.mark.parametrize("far", [1e3, 1e30])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_window_holds_all_scores(metric: str, far: float) -> None:
    """Codes far out, one of zeros, repeated ones, rows of every length: none leaves the window of a group."""
    x = torch.randn(64, 64) * 10.0 ** torch.linspace(-8, 8, 64)[:, None]
    codebook = torch.randn(180, 64)
    codebook[7] *= far
    codebook[9] = 0.0
    codebook[130:] = codebook[:50].clone()
    for dtype in (F32, BF16):
        assert_nearest(x.to(dtype), codebook.to(dtype), metric=metric)


def test_others_take_what_it_does_not() -> None:
    """More than one product, few dimensions or many, whole scores: 0, which stands for Triton's kernel."""
    for x, precision in (
        (torch.randn(1, 9, 16), "exact"),
        (torch.randn(1, 9, 300), "exact"),
        (torch.randn(1, 9, 64), "high"),
    ):
        plan = nearest.first_pass(nearest.make_plan(F32, F32, "l2", precision), x.shape[-1])
        assert hopper.depth_for(x, 4096, plan) == 0
    plan = nearest.first_pass(nearest.make_plan(F32, F32, "l2", "exact"), 64)
    assert [hopper.depth_for(torch.randn(1, 9, d), 4096, plan) for d in (32, 64, 65, 129, 256)] == [
        64,
        64,
        128,
        256,
        256,
    ]


def test_without_the_native_module_triton_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one built for another version of Python, beside what the build wrote about it."""
    monkeypatch.undo()
    built = {"cuda": {"built": True, "targets": ["90a-real"]}, "native": {"built": True, "reason": None}}
    monkeypatch.setattr(hopper, "read_build_info", lambda: built)
    monkeypatch.setitem(sys.modules, "vq_kernels._C", None)
    try:
        native._load.cache_clear()
        hopper.module.cache_clear()
        assert hopper.module() is None
    finally:
        monkeypatch.undo()
        native._load.cache_clear()
        hopper.module.cache_clear()
