"""Native search with every instruction set: against the reference, rational truth and the worst rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from native_support import ISAS, PATHS, nearest_code_with_bound, use_isa, use_path
from support import exact_codes, rational_argmin
from torch import Tensor

from benchmarks import cliffs
from benchmarks.soak_inputs import Size
from vq_kernels.backends import native


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_path(request.param, monkeypatch)


# around the sizes of vectors, tiles, panels and blocks: 4, 8, 16, 24, 48 rows; 4, 8, 16 codes
SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 64, 300),
    (1, 47, 2, 3),
    (1, 63, 8, 128),
    (3, 123, 17, 65),
    (2, 49, 100, 31),
    (1, 1134, 40, 1000),
    (5, 16, 256, 129),
    (1, 97, 520, 70),
]
LAYOUTS: dict[str, Callable[[int, int, int], Tensor]] = {
    "channel_last": lambda b, m, d: torch.randn(b, m, d),
    "channel_first": lambda b, m, d: torch.randn(b, d, m).transpose(1, 2),
    "every_other": lambda b, m, d: torch.randn(b, m, d, 2)[..., 1],
    "unaligned": lambda b, m, d: torch.randn(b * m * d + 1)[1:].view(b, m, d),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_equals_the_reference(
    path: str, shape: tuple[int, int, int, int], layout: str, dtype: str, metric: str
) -> None:
    b, m, d, k = shape
    x = LAYOUTS[layout](b, m, d)
    x = x if dtype == "f32" else torch.empty_strided(x.shape, x.stride(), dtype=DTYPES[dtype]).copy_(x)
    codebook = torch.randn(k, d)
    for codes in (codebook, codebook.to(x.dtype)):
        want = exact_codes(x, codes, metric)
        assert torch.equal(native.nearest_code(x, codes, metric, "exact"), want)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, -1e30], ids=["centred", "1e3", "1e6", "minus_1e30"])
@pytest.mark.parametrize("scale", [1e-43, 1e-30, 1.0, 1e15, 3e37], ids=lambda s: f"scale_{s:g}")
def test_any_magnitude(path: str, scale: float, offset: float) -> None:
    x = (torch.randn(1, 70, 9) * scale + offset * scale).clamp(-3e38, 3e38)
    codebook = (torch.randn(90, 9) * scale + offset * scale).clamp(-3e38, 3e38)
    want = rational_argmin(x[0, :12], codebook)
    assert torch.equal(native.nearest_code(x, codebook, "l2", "exact")[0, :12], want)
    assert torch.equal(native.nearest_code(x, codebook, "l2", "exact"), exact_codes(x, codebook))


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e34], ids=lambda s: f"scale_{s:g}")
def test_lengths_far_from_that_of_an_ordinary_code(path: str, scale: float) -> None:
    """Codes are brought to lengths of about one, and with them rows of other lengths and shorter codes."""
    lengths = torch.logspace(-8, 3, 12).repeat(20)[:, None]
    codebook = torch.randn(300, 24) * scale + scale
    codebook[::50] *= 1e-6
    x = (torch.randn(240, 24) * lengths * scale + scale)[None]
    want = rational_argmin(x[0, ::11], codebook)
    got = native.nearest_code(x, codebook, "l2", "exact")
    assert torch.equal(got[0, ::11], want)
    assert torch.equal(got, exact_codes(x, codebook))


@pytest.mark.parametrize("far", [1e20, 1e30, 3e38], ids=lambda s: f"far_{s:g}")
def test_one_code_that_is_far_from_all(path: str, far: float) -> None:
    """Brought to the length of the others it is infinite, and so are its products with rows."""
    codebook = torch.randn(16, 3) * 1e-26
    codebook[5, 1] = far
    x = (codebook[torch.randint(0, 16, (200,))].clamp(max=1.0) * 1.01)[None]
    got = native.nearest_code(x, codebook, "l2", "exact")
    assert torch.equal(got[0, :20], rational_argmin(x[0, :20], codebook))
    assert torch.equal(got, exact_codes(x, codebook))


def _all_roundings_the_same_way(d: int) -> tuple[Tensor, Tensor]:
    """Two codes whose scores a float32 sum in order gets wrong by almost as much as any sum can.

    After a first product of just over 1, products of code 0 are just under half a unit in the last
    place and are lost, those of code 1 just over half a unit and count as a whole one. Code 0 is the
    best by a larger first product, and loses.
    """
    half_ulp, start = 2.0**-24, 1 + 2.0**-10
    row = torch.full((d,), 2.0**-12)
    row[0] = 1.0
    codebook = torch.stack([row * 0.998, row * 1.002])
    codebook[0, 0] = start + 0.2 * (d - 1) * half_ulp
    codebook[1, 0] = start
    return row, codebook


def _all_conversions_the_same_way(d: int) -> tuple[Tensor, Tensor]:
    """The like for conversion to bfloat16: code 0 loses half a unit in every value, code 1 gains one."""
    ulp = 2.0**-7
    codebook = torch.stack([torch.full((d,), 1 + 0.4995 * ulp), torch.full((d,), 1 + 0.5005 * ulp)])
    codebook[:, 0] = torch.tensor([1 + ulp, 1.0])
    return torch.ones(d), codebook


def _all_residuals_the_same_way(d: int, levels: int = 127) -> tuple[Tensor, Tensor]:
    """The like for int8: code 0 loses half a step of its scale in every value, code 1 gains one."""
    step = 2.0**-7
    codebook = torch.stack([torch.full((d,), 20.4995 * step), torch.full((d,), 20.5005 * step)])
    codebook[:, 0] = levels * step
    codebook[1, 1] -= step
    return torch.ones(d), codebook


def _all_seven_bits_the_same_way(d: int) -> tuple[Tensor, Tensor]:
    """The like for int8 of seven bits."""
    return _all_residuals_the_same_way(d, 63)


def _all_int16_residuals_the_same_way(d: int) -> tuple[Tensor, Tensor]:
    """The like for int16, whose scale is the larger the fewer dimensions there are to add up."""
    return _all_residuals_the_same_way(d, math.isqrt((2**31 - 1) // d))


@pytest.mark.parametrize(
    ("path_name", "adversary", "too_tight"),
    [
        ("avx512", _all_roundings_the_same_way, 0.8),
        ("avx512 direct", _all_roundings_the_same_way, 0.4),
        ("dotprod", _all_residuals_the_same_way, 0.98),
        ("i8mm", _all_residuals_the_same_way, 0.98),
        ("avx2 int8", _all_seven_bits_the_same_way, 0.98),
        ("avx2 int16", _all_int16_residuals_the_same_way, 0.98),
        ("avxvnni", _all_residuals_the_same_way, 0.98),
        ("avx512vnni", _all_residuals_the_same_way, 0.98),
        ("amxint8", _all_residuals_the_same_way, 0.98),
        ("avx512bf16", _all_conversions_the_same_way, 0.98),
        ("amx", _all_conversions_the_same_way, 0.9),
    ],
    ids=[
        *("avx512", "direct", "dotprod", "i8mm", "avx2 int8", "avx2 int16", "avxvnni", "avx512vnni"),
        *("amxint8", "avx512bf16", "amx"),
    ],
)
def test_the_worst_rounding_is_covered_and_no_less_would_do(
    path_name: str,
    adversary: Callable[[int], tuple[Tensor, Tensor]],
    too_tight: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_path(path_name, monkeypatch)
    row, codebook = adversary(500)
    codebook = torch.cat([codebook, -codebook])  # whose centre is zero
    assert rational_argmin(row[None], codebook, "cosine") == 0
    x = row.expand(1, 20, -1).contiguous()
    assert (native.nearest_code(x, codebook, "cosine", "exact") == 0).all()
    assert (nearest_code_with_bound(x, codebook, "cosine", too_tight) == 1).all()


def _a_hair_apart() -> tuple[Tensor, Tensor]:
    """Each row lies between two codes, off the middle by about the error of a float32 score."""
    d, pairs = 48, 60
    centre = torch.randn(pairs, d) * 3
    step = torch.randn(pairs, d)
    codebook = torch.stack([centre + step, centre - step], 1).reshape(-1, d)
    shift = torch.logspace(-9, -3, pairs)[:, None] * torch.randn(pairs, 1).sign()
    return ((codebook[::2] + codebook[1::2]) / 2 + shift * step)[None], codebook


def test_scores_a_hair_apart(path: str) -> None:
    x, codebook = _a_hair_apart()
    want = exact_codes(x, codebook)
    assert torch.equal(want[0, :20], rational_argmin(x[0, :20], codebook))
    assert torch.equal(native.nearest_code(x, codebook, "l2", "exact"), want)
    assert not torch.equal(nearest_code_with_bound(x, codebook, "l2", 0.0), want)


def test_few_rows_beyond_float64(path: str) -> None:
    """A handful of rows takes a float64 path of its own; permuted codes differ there by rounding alone."""
    d = 67
    code = torch.randn(d)
    codebook = torch.stack([code[torch.randperm(d)] for _ in range(300)])
    x = torch.randn(1, 64, 1).repeat(1, 1, d)
    want = rational_argmin(x[0, :8], codebook)
    assert torch.equal(native.nearest_code(x, codebook, "l2", "exact")[0, :8], want)

    def in_parts(n: int, bound_scale: float = 1.0) -> Tensor:
        parts = [nearest_code_with_bound(part, codebook, "l2", bound_scale) for part in x.split(n, 1)]
        return torch.cat(parts, 1)

    everything = native.nearest_code(x, codebook, "l2", "exact")
    for n in range(1, 6):
        assert torch.equal(in_parts(n), everything)
    assert not torch.equal(in_parts(4, 0.0), everything)


def test_more_candidates_than_fit_the_list(path: str) -> None:
    """A hundred codes within the bound of each other: all codes are scored exactly."""
    codebook = torch.randn(1, 24).repeat(100, 1)
    for j in range(100):
        codebook[j, j % 24] *= 1 + (j // 24 + 1) * 2.0**-23
    codebook = torch.cat([torch.randn(40, 24), codebook])
    x = codebook[40:75] + 0.01 * torch.randn(35, 24)
    want = rational_argmin(x[:8], codebook)
    got = native.nearest_code(x[None], codebook, "l2", "exact")[0]
    assert torch.equal(got[:8], want)
    assert torch.equal(got, exact_codes(x[None], codebook)[0])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_rows_of_many_dimensions(path: str, metric: str) -> None:
    """With the dimensions int8 loses more than lies between scores: it gives these rows up."""
    codebook = torch.nn.functional.normalize(torch.randn(700, 2048), dim=1)
    x = torch.randn(1, 130, 2048)
    x[0, 100:110] = x[0, 100]  # repeated
    x[0, 120, 3] = float("nan")
    want = exact_codes(x, codebook, metric)
    assert torch.equal(native.nearest_code(x, codebook, metric, "exact"), want)
    assert torch.equal(native.nearest_code(x[:, ::7], codebook, metric, "exact"), want[:, ::7])


@pytest.mark.parametrize("rows", [20, 400])
@pytest.mark.parametrize("k", [3, 7, 9])
def test_codes_whose_bound_nearly_overflows(path: str, k: int, rows: int) -> None:
    """A limit that overflowed to minus infinity is what codes beyond the last one score."""
    for exponent in (30.0, 32.4, 33.0, 33.2, 33.8, 34.5, 36.0):
        codebook = torch.nn.functional.normalize(torch.randn(k, 33), dim=1) * 10.0**exponent
        x = torch.randn(1, rows, 33)
        got = native.nearest_code(x, codebook, "cosine", "exact")
        assert torch.equal(got, exact_codes(x, codebook, "cosine"))


@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
@pytest.mark.parametrize("isa", ISAS)
def test_open_rows_do_not_depend_on_their_batch(
    isa: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a narrow pass gives up is searched as exactly as its other rows, and as few, at any precision."""
    use_isa(isa, monkeypatch)
    for spread in (1e-3, 1e-4, 1e-6):
        codebook = torch.nn.functional.normalize(torch.randn(1, 64) + spread * torch.randn(256, 64), dim=1)
        x = torch.randn(1, 230, 64)
        whole = native.nearest_code(x, codebook, "cosine", precision)
        pairs = [
            native.nearest_code(x[:, i : i + 2], codebook, "cosine", precision) for i in range(0, 230, 2)
        ]
        assert torch.equal(torch.cat(pairs, 1), whole)
        prepared = native.prepare_codebook(codebook, "cosine")
        assert torch.equal(
            native.nearest_code(x[:, :2], codebook, "cosine", precision, prepared), whole[:, :2]
        )


@pytest.mark.parametrize("every", [1, 2, 3])
def test_repeated_rows_that_leave_all_codes_open(path: str, every: int) -> None:
    """Rows of zeros before codes of one length, and runs of other rows that tie, over several blocks."""
    codebook = torch.nn.functional.normalize(torch.randn(700, 20), dim=1)
    x = torch.randn(1, 2300, 20)
    x[:, ::every] *= 0.0  # of both signs
    x[:, 1200:1900:every] = 1e-6 * torch.ones(20)
    x[:, 1900::every] = -1e-6 * torch.ones(20)
    want = exact_codes(x, codebook)
    assert len({int(want[0, i]) for i in (0, 1200, 1900)}) > 1
    assert torch.equal(native.nearest_code(x, codebook, "l2", "exact"), want)


def test_copies_of_a_code_leave_the_first(path: str) -> None:
    codebook = torch.randn(300, 6)[torch.randint(0, 20, (300,))]
    x = torch.randn(1, 100, 6)
    got = native.nearest_code(x, codebook, "l2", "exact")
    assert torch.equal(got, exact_codes(x, codebook))
    assert torch.equal(got, (codebook[got][:, :, None] == codebook).all(-1).int().argmax(-1))


def test_negative_zero_ties_with_zero(path: str) -> None:
    codebook = torch.tensor([[1.0, 1.0], [-0.0, 0.0], [0.0, 0.0], [0.0, -0.0]])
    assert native.nearest_code(torch.zeros(1, 3, 2), codebook, "l2", "exact").tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
def test_a_row_does_not_depend_on_its_batch(path: str, precision: str) -> None:
    x = torch.randn(1, 130, 24)
    codebook = torch.randn(700, 24)
    together = native.nearest_code(x, codebook, "l2", precision)
    order = torch.randperm(130)
    assert torch.equal(native.nearest_code(x[:, order], codebook, "l2", precision), together[:, order])
    for row in (0, 15, 16, 47, 48, 129):
        alone = native.nearest_code(x[:, row : row + 1], codebook, "l2", precision)
        assert torch.equal(alone, together[:, row : row + 1])


@pytest.mark.parametrize("precision", ["high", "fast"])
def test_lower_precisions_survive_overflow_and_bad_rows(path: str, precision: str) -> None:
    x, codebook = torch.randn(1, 9, 5), torch.randn(30, 5)
    x[0, 1], x[0, 2, 0], x[0, 3, 1] = 1e38, torch.nan, torch.inf
    got = native.nearest_code(x, codebook, "l2", precision)[0]
    assert got[2] == got[3] == 0
    assert got[1] == rational_argmin(x[0, 1:2], codebook)[0]


def test_flushed_subnormals_change_nothing(path: str) -> None:
    x, codebook = 1e-41 * torch.randn(1, 80, 7), 1e-41 * torch.randn(50, 7)
    want = native.nearest_code(x, codebook, "l2", "exact")
    assert want.unique().numel() > 5
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        assert torch.equal(native.nearest_code(x, codebook, "l2", "exact"), want)
        assert (torch.tensor(1e-41) * 1.0).item() == 0.0
    finally:
        torch.set_flush_denormal(False)


def test_many_codes_in_blocks(path: str) -> None:
    """More codes and rows than one block holds, one code for each row planted near it."""
    d, k, n = 72, 5000, 1500
    codebook = torch.randn(k, d)
    planted = torch.randint(0, k, (n,))
    x = codebook[planted] + 0.05 * torch.randn(n, d)
    assert torch.equal(native.nearest_code(x[None], codebook, "l2", "exact")[0], planted)


@pytest.mark.parametrize("d", [16_400, 41_940, 66_000])
def test_rows_too_wide_for_a_narrow_pass(path: str, d: int) -> None:
    """There the bounds of narrow sums are useless, infinite or none."""
    codebook = torch.randn(40, d)
    assert torch.equal(native.nearest_code(codebook[None], codebook, "l2", "exact")[0], torch.arange(40))


def test_threads_change_nothing(path: str) -> None:
    x, codebook = torch.randn(2, 700, 16), torch.randn(300, 16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(native.nearest_code(x, codebook, "l2", "exact"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("awkward", ["far_clusters", "long_coordinate", "collapsed", "tiny", "huge"])
def test_rows_that_float32_leaves_open(path: str, awkward: str, metric: str) -> None:
    """Most codes of a cluster are within the bound of a product: differences or float64 tell them apart."""
    x, codebook = cliffs.Awkward(Size(400, 20, 300), (getattr(cliffs, awkward),), seed=3).draw()
    codebook[1::7] = codebook[0] * (1 + 2.0**-23)
    x[::5] = (codebook[x[::5].argmax(1)] + codebook[x[::5].argmin(1)]) / 2
    want = exact_codes(x[None], codebook, metric)
    assert torch.equal(native.nearest_code(x[None], codebook, metric, "exact"), want)
    assert torch.equal(want[0, :10], rational_argmin(x[:10], codebook, metric))


@pytest.mark.parametrize("path_name", ["avx2", "avx512"])
def test_the_bound_of_differences_is_needed(path_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clusters far apart, in each of them squares whose roundings all point the same way."""
    use_path(path_name, monkeypatch)
    d = 500
    # After a first square of 1, those of code 0 are lost, and those of code 1 count as a whole unit.
    half = 2.0**-12
    codebook = torch.stack([torch.full((d,), half * 0.998), torch.full((d,), half * 1.002)])
    codebook[0, 0] = 1 + 2.0**-10
    codebook[1, 0] = (codebook[0, 0].double() ** 2 - 0.3 * (d - 1) * half * half).sqrt()
    far = torch.full((8, d), 3e4)
    far += torch.randn(8, d)
    codebook, x = torch.cat([codebook, far]), torch.zeros(1, 200, d)
    want = rational_argmin(x[0, :1], codebook)
    assert want == 1
    assert (native.nearest_code(x, codebook, "l2", "exact") == 1).all()
    assert (nearest_code_with_bound(x, codebook, "l2", 1e-3) == 0).all()
