"""Layouts, heads and masks: each is the same computation as plain rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vq_kernels.quantizers import FusedVectorQuantizer

SPATIAL = {"none": (), "1d": (13,), "2d": (5, 3), "3d": (2, 5, 3)}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared_heads": {"heads": 2, "codebook_dim": 4},
    "separate_heads": {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True},
    "projection": {"codebook_dim": 3},
    "cosine": {"use_cosine_sim": True},
}


def twins(options: dict[str, Any], **different: Any) -> tuple[FusedVectorQuantizer, FusedVectorQuantizer]:
    layers = []
    for extra in ({}, different):
        torch.manual_seed(3)
        layers.append(FusedVectorQuantizer(8, 17, **options, **extra))
    return layers[0], layers[1]


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("spatial", SPATIAL.values(), ids=SPATIAL)
def test_channel_first_is_the_same_as_channel_last(options: dict[str, Any], spatial: tuple[int, ...]) -> None:
    last, first = twins(options, channel_last=False)
    x, weight = torch.randn(3, 8, *spatial), torch.randn(3, 8, *spatial)
    x_last = x.movedim(1, -1).contiguous().requires_grad_()
    x_first = x.clone().requires_grad_()
    for _ in range(2):
        expected, actual = last(x_last), first(x_first)
        ((expected.quantized * weight.movedim(1, -1)).sum() + expected.loss).backward()
        ((actual.quantized * weight).sum() + actual.loss).backward()
    assert torch.equal(actual.indices, expected.indices)
    torch.testing.assert_close(actual.quantized, expected.quantized.movedim(-1, 1))
    torch.testing.assert_close(actual.loss, expected.loss)
    torch.testing.assert_close(x_first.grad, x_last.grad.movedim(-1, 1))
    for key, value in last.state_dict().items():
        torch.testing.assert_close(first.state_dict()[key], value)


def test_channel_first_output_keeps_the_layout_of_the_input() -> None:
    layer = FusedVectorQuantizer(8, 17, accept_image_fmap=True)
    x = torch.randn(2, 8, 5, 3)
    assert layer(x).quantized.stride() == x.stride()
    x = x.to(memory_format=torch.channels_last)
    assert layer(x).quantized.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("channel_last", [True, False], ids=["last", "first"])
def test_masked_rows_take_no_part(options: dict[str, Any], channel_last: bool) -> None:
    cut, masked = twins(options, channel_last=channel_last)
    rows, mask = torch.randn(3, 5, 4, 8), torch.rand(3, 5, 4) < 0.5
    spoiled = torch.where(mask[..., None], rows, torch.nan)  # masked rows are not even looked at
    x = (spoiled if channel_last else spoiled.movedim(-1, 1)).requires_grad_()
    out, expected = masked(x, mask=mask), cut(rows[mask])
    (out.quantized.sum() + out.loss).backward()
    quantized = out.quantized if channel_last else out.quantized.movedim(1, -1)
    grad = x.grad if channel_last else x.grad.movedim(1, -1)
    torch.testing.assert_close(quantized[mask], expected.quantized)
    torch.testing.assert_close(out.loss, expected.loss)
    assert torch.equal(out.indices[mask], expected.indices)
    assert (quantized[~mask] == 0).all()
    assert (out.indices[~mask] == -1).all()
    assert (grad[~mask] == 0).all()
    assert all(t.isfinite().all() for t in (grad, *(p.grad for p in masked.parameters())))
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[key], value)


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}], ids=["plain", "projection"])
def test_padding_can_be_kept_and_passes_its_gradient(options: dict[str, Any]) -> None:
    layer = FusedVectorQuantizer(8, 17, return_zeros_for_masked_padding=False, **options)
    x, mask = torch.randn(3, 5, 8, requires_grad=True), torch.rand(3, 5) < 0.5
    out = layer(x, mask=mask)
    assert torch.equal(out.quantized[~mask], x[~mask])
    out.quantized.sum().backward()
    assert (x.grad[~mask] == 1).all()


@pytest.mark.parametrize("channel_last", [True, False], ids=["last", "first"])
def test_lens_is_the_mask_of_the_first_rows(channel_last: bool) -> None:
    by_mask, by_lens = twins({"channel_last": channel_last}, sync_codebook=False)
    x = torch.randn(4, 9, 8) if channel_last else torch.randn(4, 8, 9)
    lens = torch.tensor([0, 9, 3, 7], dtype=torch.int32)
    mask = torch.arange(9) < lens[:, None]
    expected, actual = by_mask(x, mask=mask), by_lens(x, lens=lens)
    assert torch.equal(actual.indices, expected.indices)
    assert torch.equal(actual.quantized, expected.quantized)
    assert torch.equal(by_lens.codebook, by_mask.codebook)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("channel_last", [True, False], ids=["last", "first"])
def test_lookups_give_back_what_eval_gave(options: dict[str, Any], channel_last: bool) -> None:
    layer = FusedVectorQuantizer(8, 17, channel_last=channel_last, **options).eval()
    x, mask = torch.randn(3, 8, 5, 4), torch.rand(3, 5, 4) < 0.7
    out = layer(x.movedim(1, -1) if channel_last else x, mask=mask)
    torch.testing.assert_close(layer.get_output_from_indices(out.indices), out.quantized)
    codes = layer.get_codes_from_indices(out.indices)
    if "codebook_dim" not in options or "heads" in options:
        torch.testing.assert_close(codes, out.quantized)
    codes = codes if channel_last else codes.movedim(1, -1)
    assert (codes[~mask] == 0).all()


def test_lookup_refuses_indices_out_of_range() -> None:
    layer = FusedVectorQuantizer(8, 17)
    for bad in (17, -2):
        with pytest.raises(ValueError, match=str(bad)):
            layer.get_codes_from_indices(torch.tensor([0, bad]))


def test_lookup_of_learnable_codes_is_differentiable() -> None:
    layer = FusedVectorQuantizer(8, 17, learnable_codebook=True)
    layer.get_codes_from_indices(torch.tensor([2, 2, -1])).sum().backward()
    expected = torch.zeros(1, 17, 8)
    expected[0, 2] = 2
    assert torch.equal(layer._codebook.embed.grad, expected)


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_heads_are_independent_quantizers_of_the_parts(separate: bool) -> None:
    layer = FusedVectorQuantizer(8, 17, heads=2, codebook_dim=4, separate_codebook_per_head=separate).eval()
    x = torch.randn(5, 7, 8)
    out = layer(x)
    assert out.indices.shape == (5, 7, 2)
    codebooks: Tensor = layer.codebook if separate else layer.codebook.expand(2, 17, 4)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        nearest = torch.cdist(x[..., part].double(), codebooks[head].double()).argmin(-1)
        assert torch.equal(out.indices[..., head], nearest)
        assert torch.equal(out.quantized[..., part], codebooks[head][nearest])
