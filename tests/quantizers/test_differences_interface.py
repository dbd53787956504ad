"""Lines of docs/differences.md on input, output and names, with both layers."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from differences_support import layers, rows
from einops import EinopsError
from vector_quantize_pytorch import VectorQuantize

from vq_kernels.quantizers import FusedVectorQuantizer
from vq_kernels.quantizers.settings import UNSUPPORTED_CALL_OPTIONS, UNSUPPORTED_OPTIONS

PEER_ERRORS = (AssertionError, RuntimeError, EinopsError)  # of shapes that it does not take


def test_codes_of_shared_heads() -> None:
    indices = torch.randint(16, (3, 11, 2))
    theirs, ours = layers(heads=2, codebook_dim=4)
    codes = theirs.get_codes_from_indices(indices)
    assert codes.shape == (3, 11, 2, 4)
    assert torch.equal(ours.get_codes_from_indices(indices), codes.flatten(-2))
    theirs, ours = layers(heads=2, codebook_dim=3)
    assert ours.get_output_from_indices(indices).shape == (3, 11, 8)
    with pytest.raises(RuntimeError, match="shapes"):
        theirs.get_output_from_indices(indices)
    theirs, ours = layers(heads=2, codebook_dim=4, separate_codebook_per_head=True)
    assert torch.equal(ours.get_codes_from_indices(indices), theirs.get_codes_from_indices(indices))


def test_indices_left_out() -> None:
    theirs, ours = layers()
    indices = torch.tensor([[3, -1]])
    assert torch.equal(ours.get_codes_from_indices(indices)[0, 1], torch.zeros(8))
    assert torch.equal(theirs.get_codes_from_indices(indices)[0, 1], theirs.codebook[-1])
    assert torch.equal(ours.get_output_from_indices(indices)[0, 1], torch.zeros(8))
    for outside in (-2, 16):
        with pytest.raises(ValueError, match=f"indices holds {outside}"):
            ours.get_codes_from_indices(torch.tensor([[outside]]))
    theirs.get_codes_from_indices(torch.tensor([[-2]]))


SHAPES = {
    "grid": ({}, (2, 3, 4, 8)),
    "video": ({}, (2, 3, 2, 4, 8)),
    "channel_first_image": ({"channel_last": False}, (2, 8, 3, 4)),
    "channel_first_volume": ({"channel_last": False}, (2, 8, 3, 4, 2)),
}


def test_shapes() -> None:
    for options, shape in SHAPES.values():
        theirs, ours = layers(**options)
        out = ours(torch.randn(shape))
        assert out.quantized.shape == shape
        assert out.indices.shape == tuple(
            n for d, n in enumerate(shape) if d != (1 if options else len(shape) - 1)
        )
        with pytest.raises(PEER_ERRORS):
            theirs(torch.randn(shape))


MASKED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "projection": ({"codebook_dim": 5}, (3, 11, 8)),
    "shared_heads": ({"heads": 2, "codebook_dim": 4}, (3, 11, 8)),
    "separate_heads": ({"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}, (3, 11, 8)),
    "image": ({"accept_image_fmap": True}, (3, 8, 4, 5)),
    "volume": ({"accept_3d_fmap": True}, (3, 8, 4, 5, 2)),
    "one_token": ({}, (11, 8)),
}


def test_masks() -> None:
    for options, shape in MASKED.values():
        theirs, ours = layers(**options)
        x = torch.randn(shape)
        indices = ours(x).indices
        mask = torch.rand(indices.shape if ours.heads == 1 else indices.shape[:-1]) < 0.6
        out = ours(x, mask=mask)
        assert (out.indices[~mask] == -1).all()
        assert (out.indices[mask] >= 0).all()
        with pytest.raises(PEER_ERRORS):
            theirs(x, mask=mask)
    theirs, ours = layers()
    lens = torch.tensor([12, 3, -1])
    theirs(rows(), lens=lens)
    with pytest.raises(ValueError, match=r"lens holds -1; accepted: 0 to 11"):
        ours(rows(), lens=lens)


def test_dtypes_of_codes() -> None:
    indices = torch.tensor([[3, 1]])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        theirs, ours = (layer.to(dtype) for layer in layers())
        codes = ours.get_codes_from_indices(indices)
        assert codes.dtype == theirs.get_codes_from_indices(indices).dtype == dtype
        assert torch.equal(codes, ours.codebook[indices].to(dtype))


def test_positions() -> None:
    theirs = list(inspect.signature(VectorQuantize.__init__).parameters)[1:]
    ours = inspect.signature(FusedVectorQuantizer.__init__).parameters
    by_position = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    assert by_position == theirs[: theirs.index("kmeans_iters") + 1]
    forward = inspect.signature(FusedVectorQuantizer.forward).parameters
    assert [n for n, p in forward.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == ["self", "x"]
    assert list(inspect.signature(VectorQuantize.forward).parameters)[1:3] == ["x", "indices"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("decay", 1.5), ("eps", 0.0), ("commitment_weight", -1.0), ("threshold_ema_dead_code", -1.0)],
)
def test_checked_values(name: str, value: float) -> None:
    VectorQuantize(8, 16, **{name: value})
    with pytest.raises(ValueError, match=f"{name} is {value}; accepted"):
        FusedVectorQuantizer(8, 16, **{name: value})
    with pytest.raises(ValueError, match="codebook_size is 0; accepted"):
        FusedVectorQuantizer(8, 0)


def _public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")} - set(dir(torch.nn.Module))


def _own_names(function: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if n != "self" and p.kind is not p.VAR_KEYWORD}


def test_more_options() -> None:
    ours, theirs = _own_names(FusedVectorQuantizer.__init__), _own_names(VectorQuantize.__init__)
    assert ours.keys() - theirs.keys() == {"codebook_weight", "process_group", "precision", "backend"}
    for name in ours.keys() & theirs.keys():
        assert ours[name].default == theirs[name].default, name
    added = {"perplexity", "usage", "codebook_sizes"}
    added |= {"update_ema", "update_codebooks", "flatten_indices", "unflatten_indices"}
    assert _public(FusedVectorQuantizer) - _public(VectorQuantize) == added


def test_options_that_do_not_exist() -> None:
    for ours, theirs, unsupported in (
        (FusedVectorQuantizer.__init__, VectorQuantize.__init__, UNSUPPORTED_OPTIONS),
        (FusedVectorQuantizer.forward, VectorQuantize.forward, UNSUPPORTED_CALL_OPTIONS),
    ):
        defaults = {name: parameter.default for name, parameter in _own_names(theirs).items()}
        assert unsupported.keys() == defaults.keys() - _own_names(ours).keys()
        for name, (default, remedy) in unsupported.items():
            assert default == defaults[name], name
            call = FusedVectorQuantizer(8, 16) if theirs is VectorQuantize.forward else FusedVectorQuantizer
            arguments = (rows(),) if theirs is VectorQuantize.forward else (8, 16)
            call(*arguments, **{name: default})
            with pytest.raises(TypeError, match=f"does not support {name} = .*{re.escape(remedy)}"):
                call(*arguments, **{name: "another"})


def test_methods_that_do_not_exist() -> None:
    missing = {"ema_update", "expire_codes_", "update_indices", "update_ema_indices"}
    missing |= {"update_in_place_optimizer", "maybe_split_heads_from_input"}
    assert _public(VectorQuantize) - _public(FusedVectorQuantizer) == missing
    theirs, ours = layers()
    buffers = [{name for name, _ in layer.named_buffers()} for layer in (theirs, ours)]
    assert buffers[0] - buffers[1] == {"zero"}
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert ours._codebook.ema_update == theirs.ema_update
