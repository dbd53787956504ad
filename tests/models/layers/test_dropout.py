"""Dropout from shared random words: its frequencies, its mean, and attention that leaves keys out."""

from __future__ import annotations

import math

import pytest
import torch

from models.layers.dropout import Dropout, drop_keys, keep_mask
from models.priors.attention import attend


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_every_place_of_a_word_has_the_probability(probability: float) -> None:
    torch.manual_seed(0)
    draws = 100_000
    mask = keep_mask((draws, 4), probability, torch.empty(0))
    kept = 1 / (1 - round(probability * 2**16) / 2**16)
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(kept).item()}
    dropped = (mask == 0).double().mean(0)  # of each of the four places in a word
    torch.testing.assert_close(
        dropped,
        torch.full((4,), probability, dtype=torch.float64),
        rtol=0,
        atol=5 * math.sqrt(probability * (1 - probability) / draws),
    )
    together = (mask == 0).double().T.cov()  # the places are independent of each other
    assert (together - together.diag().diag()).abs().max() < 5 * probability * (1 - probability) / math.sqrt(
        draws
    )


def test_masks_follow_the_seed_and_differ_from_call_to_call() -> None:
    dropout = Dropout(0.5)
    x = torch.ones(3, 7, 5)  # 105 elements do not fill the last word
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_passes_where_the_value_did(dtype: torch.dtype) -> None:
    x = torch.randn(64, 33, dtype=dtype, requires_grad=True)
    y = Dropout(0.25)(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(y == 0, 0, 4 / 3).to(dtype))


def test_the_highest_probability_leaves_a_mean() -> None:
    torch.manual_seed(0)
    mask = keep_mask((2**20,), 1 - 1e-9, torch.empty(0))
    assert set(mask.unique().tolist()) == {0.0, 2.0**16}


def test_attention_with_dropped_keys_equals_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a key are zero for every query, the others grow, and nothing is normalised again."""
    q, k, v = torch.randn(3, 2, 5, 8)
    kept: list[torch.Tensor] = []

    def drop(value: torch.Tensor, probability: float) -> torch.Tensor:
        ones = torch.ones_like(value)
        torch.manual_seed(3)
        kept.append(drop_keys(ones, probability)[..., 0])  # [B, heads, N]
        torch.manual_seed(3)
        return drop_keys(value, probability)

    monkeypatch.setattr("models.priors.attention.drop_keys", drop)
    found = attend(q, k, v, heads=2, causal=True, dropout=0.5)
    assert set(kept[0].unique().tolist()) == {0.0, 2.0}
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        weights = scores.masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf).softmax(-1)
        weights = weights * kept[0][:, head, None, :]
        torch.testing.assert_close(found[..., part], weights @ v[..., part])
