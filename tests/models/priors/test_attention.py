"""Attention in low precision on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.priors.attention import attend

LOW = [torch.bfloat16, torch.float16]


def rows(dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value ``[2, 63, 16]``, of values that bfloat16 and float16 both hold."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-20, 21, (2, 63, 16), generator=generator).div(8).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision_is_attended_in_float32_and_rounded_once(dtype: torch.dtype, autocast: bool) -> None:
    """Outputs and gradients."""
    low = [x.requires_grad_() for x in rows(dtype)]
    whole = [x.requires_grad_() for x in rows(torch.float32)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = attend(low[0], low[1], low[2], heads=4, causal=True)
    expected = attend(whole[0], whole[1], whole[2], heads=4, causal=True)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    weights = torch.linspace(-1, 1, 16)
    (out.float() * weights).sum().backward()
    # What comes back to the attention has been rounded as its output was.
    expected.backward(weights.to(dtype).float().expand_as(expected))
    for one, other in zip(low, whole, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad.to(dtype))


def test_double_precision_stays() -> None:
    query, key, value = rows(torch.float64)
    out = attend(query, key, value, heads=4, causal=False)
    scores = query[..., :4] @ key[..., :4].mT / 2
    assert out.dtype == torch.float64
    assert torch.allclose(out[..., :4], scores.softmax(-1) @ value[..., :4], rtol=0, atol=1e-13)
