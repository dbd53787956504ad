"""Parts of the priors against their definitions, where no property of the whole would show a change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from priors_support import UPPER_K, Case, build, inputs
from torch import Tensor

from models.priors.attention import attend
from models.priors.filters import filter_logits


def test_attention_equals_its_definition() -> None:
    q, k, v = torch.randn(3, 2, 5, 8)
    found = attend(q, k, v, heads=2, causal=True)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        weights = scores.masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf).softmax(-1)
        torch.testing.assert_close(found[..., part], weights @ v[..., part])


@pytest.mark.parametrize("kind", ["transformer", "pixelsnail"])
def test_attention_leaves_positions_out_in_training_only_and_stays_fused(
    kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((3, 3))
    prior = build(kind, case, device, dropout=0.5)
    codes, _ = inputs(case, device)
    zeros: list[bool] = []
    attention = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **named: Any) -> Tensor:
        assert not named.get("dropout_p"), "with it torch stores the N x N matrix on the CPU"
        zeros.extend((v == 0).all(-1).flatten().tolist())
        return attention(q, k, v, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    for training in (True, False):
        prior.train(training)(codes)
        assert any(zeros) == training
        assert not all(zeros)
        zeros.clear()


UNDER = Case((4, 6), upper=(2, 3))
UPPER = torch.tensor([[[0, 1, 2], [3, 0, 1]]])


@pytest.mark.parametrize("cell", range(6))
def test_every_logit_of_a_transformer_reads_every_cell_of_the_upper_map(
    cell: int, device: torch.device
) -> None:
    prior = build("transformer", UNDER, device)
    codes, _ = inputs(UNDER, device, batch=1)
    changed = UPPER.clone()
    changed.view(-1)[cell] = (changed.view(-1)[cell] + 1) % UPPER_K
    with torch.no_grad():
        before, after = (prior.logits(codes, upper=upper.to(device)) for upper in (UPPER, changed))
    assert ((before - after).abs().amax(1) > 1e-6).all()


def test_a_transformer_knows_where_the_codes_of_the_upper_map_are(device: torch.device) -> None:
    """Swapping the last two shows in the logits under the first two, which read both from afar."""
    prior = build("transformer", UNDER, device)
    codes, _ = inputs(UNDER, device, batch=1)
    swapped = torch.tensor([[[0, 1, 2], [3, 1, 0]]])
    with torch.no_grad():
        before, after = (prior.logits(codes, upper=upper.to(device)) for upper in (UPPER, swapped))
    assert ((before - after).abs().amax(1)[0, :2, :2] > 1e-5).all()


def test_a_pixelsnail_knows_where_it_is(device: torch.device) -> None:
    """Equal codes everywhere, no attention and a reach that ends before the border: the background tells."""
    prior = build("pixelsnail", Case((20, 20)), device, attention=False, blocks=1)
    with torch.no_grad():
        logits = prior.logits(torch.zeros(1, 20, 20, dtype=torch.int64, device=device))[0]
    here, above, left = logits[:, 15, 10], logits[:, 14, 10], logits[:, 15, 9]
    assert (here - above).abs().max() > 1e-4
    assert (here - left).abs().max() > 1e-4


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.5, 2), (0.75, 3), (0.7500001, 4)])
def test_top_p_stops_where_the_mass_reaches_it_exactly(top_p: float, kept: int) -> None:
    """Four equal codes, whose probabilities and sums carry no rounding."""
    assert int(filter_logits(torch.zeros(1, 4), top_p=top_p).isfinite().sum()) == kept
