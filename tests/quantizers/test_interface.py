"""What a model may ask of any quantizer, held by every member of the family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vq_kernels import FusedVectorQuantizer, Quantizer, QuantizerOutput

# name -> (a quantizer of 8 channels, number of codes of a position)
FAMILY: dict[str, tuple[type[Quantizer], dict[str, Any], int]] = {
    "fused": (FusedVectorQuantizer, {}, 1),
    "fused_images": (FusedVectorQuantizer, {"accept_image_fmap": True}, 1),
    "fused_projection": (FusedVectorQuantizer, {"codebook_dim": 3}, 1),
    "fused_heads": (FusedVectorQuantizer, {"heads": 2, "codebook_dim": 4}, 2),
    "fused_separate_heads": (
        FusedVectorQuantizer,
        {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
        2,
    ),
    "fused_manual": (FusedVectorQuantizer, {"manual_ema_update": True}, 1),
}
family = pytest.mark.parametrize("name", FAMILY)


def build(name: str) -> tuple[Quantizer, int]:
    kind, options, codes_per_position = FAMILY[name]
    return kind(8, 16, **options), codes_per_position


def input_for(name: str) -> Tensor:
    return torch.randn(2, 8, 5, 3) if "images" in name else torch.randn(2, 15, 8)


@family
def test_shapes_of_what_forward_returns(name: str) -> None:
    quantizer, q = build(name)
    x = input_for(name)
    positions = (2, 5, 3) if "images" in name else (2, 15)
    out = quantizer(x)
    assert isinstance(out, QuantizerOutput)
    assert out.quantized.shape == x.shape
    assert out.indices.dtype == torch.int64
    assert out.indices.shape == (positions if q == 1 else (*positions, q))
    assert out.loss.shape == ()
    flat = quantizer.flatten_indices(out.indices)
    assert flat.shape == (*positions, q)
    assert torch.equal(quantizer.unflatten_indices(flat), out.indices)
    assert len(quantizer.codebook_sizes) == q
    assert all(int(flat[..., i].max()) < size for i, size in enumerate(quantizer.codebook_sizes))


@family
def test_indices_are_inverted(name: str) -> None:
    quantizer, _ = build(name)
    quantizer(input_for(name))
    quantizer.update_codebooks()
    quantizer.eval()
    out = quantizer(input_for(name))
    torch.testing.assert_close(quantizer.get_output_from_indices(out.indices), out.quantized)
    assert quantizer.get_codes_from_indices(out.indices).isfinite().all()


@family
def test_counts_are_of_the_last_training_batch_and_not_saved(name: str) -> None:
    quantizer, q = build(name)
    x = input_for(name)
    quantizer(x)
    assert quantizer.last_counts is not None
    assert quantizer.last_counts.dtype == torch.int64
    assert quantizer.last_counts.sum() == 30 * q
    for value in (quantizer.perplexity, quantizer.usage):
        assert value is not None
        assert value.shape == ()
    before = quantizer.last_counts.clone()
    quantizer.eval()(x)
    assert torch.equal(quantizer.last_counts, before)
    assert not any("counts" in key for key in quantizer.state_dict())


@family
def test_update_codebooks_does_nothing_where_nothing_waits(name: str) -> None:
    quantizer, _ = build(name)
    quantizer(input_for(name))
    quantizer.update_codebooks()
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    counts = quantizer.last_counts
    quantizer.update_codebooks()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert counts is not None
    assert quantizer.last_counts is not None
    assert torch.equal(quantizer.last_counts, counts)


@family
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_state_is_float32_whatever_the_default_dtype_says(name: str, default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    try:
        quantizer, _ = build(name)
    finally:
        torch.set_default_dtype(torch.float32)
    quantizer.to(torch.float16)
    tables = [v for k, v in quantizer.state_dict().items() if "project" not in k and v.is_floating_point()]
    assert tables
    assert all(v.dtype == torch.float32 for v in tables)


@family
def test_counts_follow_the_layer_to_its_device(name: str) -> None:
    quantizer, _ = build(name)
    assert quantizer.to("meta").last_counts.device.type == "meta"


def test_a_quantizer_that_lacks_a_part_says_which() -> None:
    class Half(Quantizer):
        last_counts = None

    half = Half()
    assert half.perplexity is None
    assert half.usage is None
    half.update_codebooks()
    for name in ("get_codes_from_indices", "get_output_from_indices"):
        with pytest.raises(NotImplementedError, match=f"Half has no {name}"):
            getattr(half, name)(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match="Half has no codebook_sizes"):
        half.flatten_indices(torch.zeros(1, dtype=torch.int64))
