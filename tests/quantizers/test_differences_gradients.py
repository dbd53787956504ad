"""Lines of docs/differences.md on losses and gradients, with both layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differences_support import LEARNABLE, layers, rows


def test_loss_in_eval() -> None:
    theirs, ours = layers(commitment_weight=0.25)
    x = rows()
    quantized, _, loss = ours.eval()(x)
    torch.testing.assert_close(loss, 0.25 * F.mse_loss(quantized, x))
    assert theirs.eval()(x)[2] == 0


@pytest.mark.parametrize("options", [{}, LEARNABLE], ids=["ema", "learnable"])
def test_gradient_in_eval(options: dict[str, Any]) -> None:
    theirs, ours = layers(rotation_trick=False, **options)
    x, weight = rows().requires_grad_(), rows()
    (ours.eval()(x).quantized * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight)
    quantized, _, loss = theirs.eval()(x)
    assert quantized.requires_grad == bool(options)  # of the codes
    if options:
        assert torch.autograd.grad(quantized.sum(), x, allow_unused=True) == (None,)
    assert not loss.requires_grad


def test_frozen_codes_get_no_gradient() -> None:
    for evaluate, x in ((True, rows()), (True, rows().requires_grad_()), (False, rows())):
        theirs, ours = layers(freeze_codebook=not evaluate, **LEARNABLE)
        for layer in (theirs, ours):
            quantized, _, loss = layer.train(not evaluate)(x)
            total = quantized.sum() + loss
            if total.requires_grad:
                total.backward()
        assert theirs._codebook.embed.grad.abs().sum() > 0
        assert ours._codebook.embed.grad is None


def test_project_in_of_a_frozen_encoder() -> None:
    theirs, ours = layers(codebook_dim=5)
    x, weight = rows(), rows()
    for layer in (theirs, ours):
        (layer(x, freeze_codebook=True)[0] * weight).sum().backward()
    assert theirs.project_in.weight.grad is None
    of_frozen = ours.project_in.weight.grad.clone()
    for layer in (theirs, ours):
        layer.zero_grad()
        (layer(x.requires_grad_(), freeze_codebook=True)[0] * weight).sum().backward()
    # Both give this one as soon as x needs a gradient.
    torch.testing.assert_close(ours.project_in.weight.grad, of_frozen)
    torch.testing.assert_close(theirs.project_in.weight.grad, of_frozen, rtol=1e-4, atol=1e-4)


def test_output_is_the_code() -> None:
    theirs, ours = layers()
    x, codes = (100 * rows()).requires_grad_(), ours.codebook.clone()
    quantized, indices, _ = ours(x)
    assert torch.equal(quantized, codes[indices])
    quantized, indices, _ = theirs(x)
    assert not torch.equal(quantized, codes[indices])
    torch.testing.assert_close(quantized, codes[indices], rtol=1e-4, atol=1e-4)


def test_loss_dtype() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        theirs, ours = layers()
        x = rows().to(dtype)
        assert ours.to(dtype)(x).loss.dtype == torch.float32
        assert theirs.to(dtype)(x)[2].dtype == dtype
    theirs, ours = layers(commitment_weight=0.0)
    assert ours(rows().double()).loss.dtype == torch.float64
    assert theirs(rows().double())[2].dtype == torch.float32
    theirs, ours = layers()
    assert ours(rows().double()).loss.dtype == theirs(rows().double())[2].dtype == torch.float64


def test_masked_cosine_loss() -> None:
    theirs, ours = layers(use_cosine_sim=True, freeze_codebook=True)
    x, mask = rows(), torch.ones(3, 11, dtype=torch.bool)
    assert torch.equal(ours(x, mask=mask).loss, ours(x).loss)
    torch.testing.assert_close(theirs(x)[2], ours(x).loss)
    quantized = theirs(x, mask=mask)[0]
    torch.testing.assert_close(theirs(x, mask=mask)[2], F.mse_loss(quantized, x))


@pytest.mark.parametrize("masked", [False, True], ids=["empty", "all_masked"])
def test_no_rows(masked: bool) -> None:
    theirs, ours = layers()
    x = rows() if masked else rows(0, 11)
    call = {"mask": torch.zeros(3, 11, dtype=torch.bool)} if masked else {}
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    assert ours(x, **call).loss == 0
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert theirs(x, **call)[2].isnan()
    torch.testing.assert_close(theirs._codebook.cluster_size, 0.8 * before["_codebook.cluster_size"])


def test_rows_that_are_not_finite() -> None:
    theirs, ours = layers()
    x = rows()
    x[0, 3, 2] = torch.nan
    out = ours(x)
    assert out.quantized[0, 3].isnan().all()
    assert out.loss.isnan()
    assert ours.codebook.isfinite().all()
    theirs(x)
    assert theirs.codebook[:, 2].isnan().all()
