"""The soak test: its truth, every path on each kind of input, and that it finds a bound too tight."""

from __future__ import annotations

import pytest
import torch
from support import rational_argmin

from vq_kernels.backends import native

if (_reason := native.unavailable_reason()) is not None:
    pytest.skip(_reason, allow_module_level=True)

from benchmarks import soak
from benchmarks.paths import PATHS, usable_paths
from benchmarks.soak_inputs import FEW, PLENTY, Size


def _case(kind: str, metric: str, seed: int = 1) -> soak.Case:
    return soak.Case(kind, Size(130, 19, 150), metric, torch.float32, False, seed)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", [*PLENTY, *FEW])
def test_every_path_passes_each_kind(kind: str, metric: str) -> None:
    case = _case(kind, metric)
    x, codebook = case.draw()
    truth = soak.true_indices(x[0], codebook, metric)
    assert (truth >= 0).all()
    for path in usable_paths():
        assert torch.equal(soak.search(path, x, codebook, metric), truth), path


@pytest.mark.parametrize("kind", ["gaussian", "grid", "midpoints", "near_copies", "outlier", "offset"])
def test_the_truth_is_that_of_rational_arithmetic(kind: str) -> None:
    x, codebook = _case(kind, "l2").draw()
    assert torch.equal(soak.true_indices(x[0, -12:], codebook, "l2"), rational_argmin(x[0, -12:], codebook))


@pytest.mark.parametrize("kind", [*PLENTY, *FEW])
def test_every_draw_is_finite(kind: str) -> None:
    for seed in range(5):
        x, codebook = soak.Case(kind, Size(300, 9, 40), "l2", torch.float16, False, seed).draw()
        assert x.isfinite().all()
        assert codebook.isfinite().all()


def test_a_case_comes_from_its_number_alone() -> None:
    case = soak.make_case(17, 1000)
    assert case == soak.make_case(17, 1000)
    assert all(torch.equal(a, b) for a, b in zip(case.draw(), case.draw(), strict=True))
    assert len({soak.make_case(seed, 1000).kind for seed in range(200)}) == len(PLENTY | FEW)


@pytest.mark.parametrize("path", PATHS)
def test_a_bound_that_is_too_tight_is_found(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    if path not in usable_paths():
        pytest.skip(f"{path} does not run here")
    arguments = ["--seconds", "0", "--paths", path, "--rows", "4000", "--seed", "16"]
    assert soak.main([*arguments, "--bound-scale", "0"]) == 1
    assert "wrong, row" in capsys.readouterr().out
    assert soak.main(arguments) == 0
    assert f"{path} " in capsys.readouterr().out


def test_an_unknown_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--paths", "sse9"])
    assert "--paths is 'sse9'; accepted here: portable" in capsys.readouterr().err
