"""Arguments are checked with messages that help; priors are saved, loaded, copied, compiled and imported."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from priors_support import Case, build, inputs, kinds

from models.priors import AutoregressivePrior, PixelCNN, PixelSNAIL, TransformerPrior

CONDITIONAL = Case((4, 6), classes=3, upper=(2, 3))

WRONG_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"codes": torch.zeros(2, 4, 6)},
        TypeError,
        "codes is a tensor of torch.float32; accepted: an int64 tensor",
    ),
    ({"codes": [[1, 2]]}, TypeError, "codes is a list; accepted: an int64 tensor"),
    (
        {"codes": torch.zeros(2, 1, 4, 6, dtype=torch.int64)},
        ValueError,
        r"codes is of shape .*; accepted: \[B, \*S\]",
    ),
    ({"codes": torch.zeros(2, 0, 6, dtype=torch.int64)}, ValueError, "none empty"),
    ({"codes": torch.full((2, 4, 6), 5)}, ValueError, "codes holds values from 5 to 5; accepted: 0 to 4"),
    ({"codes": torch.full((2, 4, 6), -1)}, ValueError, "codes.*from -1"),
    ({"labels": None}, ValueError, "labels is None; accepted: the class of each map.*num_classes=3"),
    ({"labels": torch.zeros(2)}, TypeError, "labels is a tensor of torch.float32; accepted: an int64 tensor"),
    (
        {"labels": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        r"labels is of shape \(3,\); accepted: \[2\]",
    ),
    ({"labels": torch.full((2,), 3)}, ValueError, "labels holds values from 3 to 3; accepted: 0 to 2"),
    (
        {"upper": None},
        ValueError,
        "upper is None; accepted: the codes of the level above.*upper_codebook_size=4",
    ),
    ({"upper": torch.full((2, 2, 3), 4)}, ValueError, "upper holds values from 4 to 4; accepted: 0 to 3"),
    (
        {"upper": torch.zeros(1, 2, 3, dtype=torch.int64)},
        ValueError,
        r"upper is of shape .*; accepted: \[2, \*U\]",
    ),
]


@kinds
@pytest.mark.parametrize(
    ("change", "error", "message"),
    WRONG_CALLS,
    ids=[f"{next(iter(call[0]))}-{n}" for n, call in enumerate(WRONG_CALLS)],
)
def test_wrong_inputs_are_named(
    kind: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    prior = build(kind, CONDITIONAL, torch.device("cpu"))
    codes, conditions = inputs(CONDITIONAL, torch.device("cpu"), batch=2)
    with pytest.raises(error, match=message):
        prior.log_prob(**{"codes": codes, **conditions, **change})


@kinds
def test_conditions_that_the_prior_was_not_built_for_are_refused(kind: str) -> None:
    prior = build(kind, Case((4, 6)), torch.device("cpu"))
    codes = torch.zeros(1, 4, 6, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"labels is a tensor of torch.int64; accepted: None.*num_classes=None"
    ):
        prior.log_prob(codes, codes[:, 0, 0])
    with pytest.raises(ValueError, match=r"upper is a tensor of torch.int64; accepted: None.*book_size=None"):
        prior.log_prob(codes, upper=codes)


@kinds
@pytest.mark.parametrize(
    ("shape", "error"),
    [((2, 3, 4, 5, 6), ValueError), ((2,), ValueError), ((2, 0, 3), ValueError), ((2, 3.0, 4), TypeError)],
    ids=["axes", "no-map", "empty-map", "float"],
)
def test_wrong_sample_shapes_are_named(kind: str, shape: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"shape is .*; accepted: "):
        build(kind, Case((4, 6)), torch.device("cpu")).sample(shape)


@kinds
def test_a_wrong_filter_is_refused_before_any_work(kind: str) -> None:
    with pytest.raises(ValueError, match="top_p"):
        build(kind, Case((4, 6)), torch.device("cpu")).sample((1, 4, 6), top_p=2.0)


@pytest.mark.parametrize(
    ("construct", "error", "message"),
    [
        (lambda: PixelCNN(0), ValueError, "codebook_size is 0; accepted: an integer of at least 1"),
        (lambda: PixelCNN(4.0), TypeError, "codebook_size is 4.0; accepted: an integer"),
        (
            lambda: PixelCNN(4, kernel_size=4),
            ValueError,
            "kernel_size is 4; accepted: an odd integer of at least 3",
        ),
        (lambda: PixelCNN(4, dropout=1.0), ValueError, "dropout is 1; accepted: a number from 0 to below 1"),
        (
            lambda: PixelCNN(4, num_classes=0),
            ValueError,
            "num_classes is 0; accepted: an integer of at least 1",
        ),
        (
            lambda: PixelSNAIL(4, 24, heads=8),
            ValueError,
            "channels is 24; accepted: a multiple of 2 . heads = 16",
        ),
        (
            lambda: PixelSNAIL(4, 16, out_res_blocks=-1),
            ValueError,
            "out_res_blocks is -1; accepted: an integer of at least 0",
        ),
        (
            lambda: TransformerPrior(4, 30, shape=(4, 4), heads=4),
            ValueError,
            "heads is 4; accepted: a divisor of width = 30",
        ),
        (lambda: TransformerPrior(4, shape=()), ValueError, r"shape is \(\); accepted: the 1 to 3 sizes"),
        (
            lambda: TransformerPrior(4, shape=(4, 0)),
            ValueError,
            r"shape\[1\] is 0; accepted: an integer of at least 1",
        ),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_wrong_constructor_arguments_are_named(construct: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        construct()


@kinds
def test_a_saved_prior_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    prior = build(kind, CONDITIONAL, torch.device("cpu"))
    codes, conditions = inputs(CONDITIONAL, torch.device("cpu"))
    prior.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    for loaded in (type(prior).from_pretrained(tmp_path), AutoregressivePrior.from_pretrained(tmp_path)):
        assert type(loaded) is type(prior)
        assert not loaded.training
        assert torch.equal(prior.log_prob(codes, **conditions), loaded.log_prob(codes, **conditions))


@kinds
def test_a_copy_samples_on_its_own(kind: str) -> None:
    prior = build(kind, Case((3, 4)), torch.device("cpu"))
    other = copy.deepcopy(prior)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
    first = other.sample((2, 3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        first, copy.deepcopy(other).sample((2, 3, 4), generator=torch.Generator().manual_seed(0))
    )
    with torch.no_grad():
        assert other.logits(first).std() > 0.05


@kinds
def test_the_training_pass_has_no_graph_break(kind: str) -> None:
    prior = build(kind, CONDITIONAL, torch.device("cpu"))
    codes, conditions = inputs(CONDITIONAL, torch.device("cpu"))
    torch._dynamo.reset()  # of one function no more than eight versions are compiled
    compiled = torch.compile(prior, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(codes, **conditions), prior(codes, **conditions))


def test_importing_the_priors_loads_torch_and_nothing_heavy() -> None:
    heavy = [
        "datasets",
        "lightning",
        "matplotlib",
        "pandas",
        "safetensors",
        "sklearn",
        "torchmetrics",
        "triton",
    ]
    code = f"import sys, models.priors; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[3]
    before = f"import sys, torch; print([name for name in {heavy} if name in sys.modules])"
    runs = [
        subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True, check=True)
        for text in (before, code)
    ]
    assert runs[0].stdout == runs[1].stdout
