"""Every argument is checked once: the message names it, its value and what is accepted."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from vq_kernels.quantizers import FusedVectorQuantizer
from vq_kernels.quantizers.settings import UNSUPPORTED_CALL_OPTIONS, UNSUPPORTED_OPTIONS

WRONG_TYPE: list[tuple[str, Any]] = [
    ("process_group", "world"),
    ("dim", 4.0),
    ("codebook_size", "8"),
    ("codebook_dim", 2.5),
    ("heads", True),
    ("separate_codebook_per_head", 1),
    ("layernorm_after_project_in", None),
    ("channel_last", "yes"),
    ("accept_image_fmap", 1),
    ("accept_3d_fmap", 1),
    ("return_zeros_for_masked_padding", 0),
    ("use_cosine_sim", "cosine"),
    ("rotation_trick", "yes"),
    ("commitment_weight", "1"),
    ("codebook_weight", True),
    ("learnable_codebook", 1),
    ("ema_update", 0),
    ("manual_ema_update", None),
    ("freeze_codebook", 1),
    ("decay", None),
    ("eps", "small"),
    ("kmeans_init", 1),
    ("kmeans_iters", 1.5),
    ("threshold_ema_dead_code", "2"),
    ("sync_codebook", 1),
]
WRONG_VALUE: list[tuple[str, Any]] = [
    ("dim", 0),
    ("codebook_size", -3),
    ("codebook_dim", 0),
    ("heads", 0),
    ("commitment_weight", -0.5),
    ("codebook_weight", float("nan")),
    ("decay", 1.5),
    ("eps", -1e-5),
    ("kmeans_iters", 0),
    ("threshold_ema_dead_code", float("inf")),
    ("precision", "tf32"),
    ("backend", "numpy"),
]


def build(**options: Any) -> FusedVectorQuantizer:
    return FusedVectorQuantizer(**{"dim": 4, "codebook_size": 8, **options})


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE, ids=[n for n, _ in WRONG_TYPE])
def test_wrong_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as error:
        build(**{name: value})
    assert name in str(error.value)
    assert repr(value) in str(error.value)
    assert "accepted" in str(error.value)


@pytest.mark.parametrize(("name", "value"), WRONG_VALUE, ids=[n for n, _ in WRONG_VALUE])
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as error:
        build(**{name: value})
    assert name in str(error.value)
    assert repr(value) in str(error.value)
    assert "accepted" in str(error.value)


def test_every_constructor_argument_has_a_wrong_value_above() -> None:
    names = set(inspect.signature(FusedVectorQuantizer.__init__).parameters) - {"self", "unsupported"}
    assert names == {name for name, _ in WRONG_TYPE + WRONG_VALUE}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"accept_image_fmap": True, "accept_3d_fmap": True}, "accept_3d_fmap"),
        ({"ema_update": True, "learnable_codebook": True}, "learnable_codebook"),
        ({"manual_ema_update": True, "ema_update": False}, "manual_ema_update"),
        ({"manual_ema_update": True, "learnable_codebook": True}, "manual_ema_update"),
        ({"codebook_weight": 1.0}, "codebook_weight"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_arguments_that_exclude_each_other_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build(**options)


@pytest.mark.parametrize("name", UNSUPPORTED_OPTIONS)
def test_options_of_the_peer_that_do_not_exist_here_name_the_remedy(name: str) -> None:
    default, remedy = UNSUPPORTED_OPTIONS[name]
    build(**{name: default})
    value = not default if isinstance(default, bool) else 0.7
    with pytest.raises(TypeError) as error:
        build(**{name: value})
    assert name in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize("name", UNSUPPORTED_CALL_OPTIONS)
def test_call_options_of_the_peer_that_do_not_exist_here_name_the_remedy(name: str) -> None:
    default, remedy = UNSUPPORTED_CALL_OPTIONS[name]
    layer, x = build(), torch.randn(3, 4)
    layer(x, **{name: default})
    with pytest.raises(TypeError) as error:
        layer(x, **{name: torch.ones(3)})
    assert name in str(error.value)
    assert remedy in str(error.value)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="codebok_dim"):
        build(codebok_dim=3)
    with pytest.raises(TypeError, match="maks"):
        build()(torch.randn(3, 4), maks=None)


CALLS: dict[str, tuple[dict[str, Any], Any, dict[str, Any], type[Exception], list[str]]] = {
    "not_a_tensor": ({}, [1.0], {}, TypeError, ["x", "list", "Tensor"]),
    "integers": ({}, torch.ones(3, 4, dtype=torch.int64), {}, TypeError, ["x", "int64", "float32"]),
    "integers_to_project": (
        {"codebook_dim": 2, "kmeans_init": True},
        torch.ones(3, 4, dtype=torch.int64),
        {},
        TypeError,
        ["x", "int64", "float32"],
    ),
    "other_device": (
        {"kmeans_init": True},
        torch.ones(3, 4, device="meta"),
        {},
        ValueError,
        ["x", "meta", "cpu"],
    ),
    "wrong_dim": ({}, torch.ones(3, 5), {}, ValueError, ["x", "(3, 5)", "[..., 4]"]),
    "one_dimension": ({}, torch.ones(4), {}, ValueError, ["x", "(4,)", "two dimensions"]),
    "channel_last_given_first": (
        {"channel_last": False},
        torch.ones(2, 9, 4),
        {},
        ValueError,
        ["x", "(2, 9, 4)", "[B, 4]"],
    ),
    "image_of_three": (
        {"accept_image_fmap": True},
        torch.ones(2, 4, 9),
        {},
        ValueError,
        ["(2, 4, 9)", "[B, 4, H, W]"],
    ),
    "volume_of_four": ({"accept_3d_fmap": True}, torch.ones(2, 4, 9, 9), {}, ValueError, ["[B, 4, T, H, W]"]),
    "four_spatial": (
        {"channel_last": False},
        torch.ones(1, 4, 1, 1, 1, 1),
        {},
        ValueError,
        ["(1, 4, 1, 1, 1, 1)"],
    ),
    "mask_floats": (
        {},
        torch.ones(2, 3, 4),
        {"mask": torch.ones(2, 3)},
        TypeError,
        ["mask", "float32", "bool"],
    ),
    "mask_list": ({}, torch.ones(2, 3, 4), {"mask": [True]}, TypeError, ["mask", "list", "bool"]),
    "mask_shape": (
        {},
        torch.ones(2, 3, 4),
        {"mask": torch.ones(3, dtype=torch.bool)},
        ValueError,
        ["mask", "(3,)", "(2, 3)"],
    ),
    "mask_and_lens": (
        {},
        torch.ones(2, 3, 4),
        {"mask": torch.ones(2, 3, dtype=torch.bool), "lens": torch.ones(2, dtype=torch.int64)},
        ValueError,
        ["mask and lens"],
    ),
    "lens_floats": (
        {},
        torch.ones(2, 3, 4),
        {"lens": torch.ones(2)},
        TypeError,
        ["lens", "float32", "integer"],
    ),
    "lens_negative": (
        {},
        torch.randn(2, 3, 4),
        {"lens": torch.tensor([-3, 1])},
        ValueError,
        ["lens holds -3", "0 to 3"],
    ),
    "lens_too_long": (
        {},
        torch.randn(2, 3, 4),
        {"lens": torch.tensor([3, 4])},
        ValueError,
        ["lens holds 4", "0 to 3"],
    ),
    "lens_shape": (
        {},
        torch.ones(2, 3, 4),
        {"lens": torch.ones(3, dtype=torch.int64)},
        ValueError,
        ["lens", "(3,)", "[B]"],
    ),
    "lens_of_images": (
        {"accept_image_fmap": True},
        torch.ones(2, 4, 3, 3),
        {"lens": torch.ones(2, dtype=torch.int64)},
        ValueError,
        ["lens", "(2, 4, 3, 3)"],
    ),
    "freeze": (
        {},
        torch.ones(2, 4),
        {"freeze_codebook": 1},
        TypeError,
        ["freeze_codebook", "1", "True or False"],
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls_are_refused_and_change_nothing(case: str) -> None:
    options, x, call, kind, words = CALLS[case]
    layer = build(**options)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(kind) as error:
        layer(x, **call)
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_codebook_setter_refuses_what_does_not_fit() -> None:
    layer = build()
    with pytest.raises(ValueError, match=r"\(8, 5\).*\(8, 4\)"):
        layer.codebook = torch.zeros(8, 5)
    with pytest.raises(TypeError, match="codebook"):
        layer.codebook = torch.zeros(8, 4, dtype=torch.int64)


def test_lookups_refuse_what_does_not_fit() -> None:
    layer = build(heads=2, codebook_dim=2)
    with pytest.raises(TypeError, match=r"indices.*float32"):
        layer.get_codes_from_indices(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"indices.*\(3,\).*2"):
        layer.get_output_from_indices(torch.zeros(3, dtype=torch.int64))
    for bad in (-2, 8):
        message = rf"indices holds {bad}; accepted: -1 to 7 \(codebook_size - 1\)"
        with pytest.raises(ValueError, match=message):
            build().get_codes_from_indices(torch.tensor([0, -1, bad]))
        with pytest.raises(ValueError, match=message):
            layer.get_output_from_indices(torch.tensor([[0, -1], [1, bad]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_the_last_code_is_one_in_every_dtype(dtype: torch.dtype) -> None:
    """In uint8, 255 equals -1, which stands for a row that was left out."""
    layer = FusedVectorQuantizer(6, 256)
    indices = torch.tensor([0, 254, 255])
    assert torch.equal(layer.get_codes_from_indices(indices.to(dtype)), layer.codebook[indices])
    if dtype.is_signed:
        assert not layer.get_codes_from_indices(torch.tensor([-1], dtype=dtype)).any()
