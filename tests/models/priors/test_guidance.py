"""The label that says nothing, and samples that are guided by the difference that a label makes."""

from __future__ import annotations

import pytest
import torch
from priors_support import KINDS, K, kinds, randomise

from models.priors import AutoregressivePrior
from models.priors.filters import draw, filter_logits

SHAPE = (4, 3, 3)
LABELS = torch.tensor([0, 1, 2, 1])
UPPER = torch.arange(16).view(4, 2, 2) % 4


def _prior(kind: str, null_label: bool = True) -> AutoregressivePrior:
    prior = KINDS[kind](K, 2, num_classes=3, upper_codebook_size=4, null_label=null_label)
    return randomise(prior).eval()


@kinds
def test_a_label_that_is_left_out_is_the_one_that_says_nothing(kind: str) -> None:
    prior, codes = _prior(kind), torch.arange(36).view(SHAPE) % K
    null = torch.full((4,), 3)
    without = prior.log_prob(codes, upper=UPPER)
    assert torch.equal(without, prior.log_prob(codes, null, UPPER))
    assert not torch.allclose(without, prior.log_prob(codes, LABELS, UPPER))
    assert prior.num_labels == 4
    with pytest.raises(ValueError, match="labels holds values from 4 to 4; accepted: 0 to 3"):
        prior.log_prob(codes, null + 1, UPPER)
    with pytest.raises(ValueError, match="labels is None; accepted: the class of each map"):
        _prior(kind, null_label=False).log_prob(codes, upper=UPPER)


@kinds
def test_guided_samples_are_drawn_from_the_combined_logits(kind: str) -> None:
    prior, scale = _prior(kind), 2.5
    drawn = prior.sample(
        SHAPE, LABELS, UPPER, 0.9, top_p=0.8, guidance=scale, generator=torch.Generator().manual_seed(3)
    )
    generator = torch.Generator().manual_seed(3)
    codes = torch.zeros(SHAPE, dtype=torch.int64)
    for position in range(9):
        with torch.no_grad():
            both = [
                prior.logits(codes, labels, UPPER).flatten(2)[:, :, position]
                for labels in (LABELS, torch.full((4,), 3))
            ]
        logits = filter_logits(both[1] + scale * (both[0] - both[1]), 0.9, None, 0.8)
        codes.flatten(1)[:, position] = draw(logits, generator)
    assert torch.equal(drawn, codes)
    plain = [
        prior.sample(SHAPE, LABELS, UPPER, generator=torch.Generator().manual_seed(3), **guidance)
        for guidance in ({}, {"guidance": 1.0})
    ]
    assert torch.equal(*plain)


def test_guidance_needs_a_label_that_says_nothing() -> None:
    with pytest.raises(ValueError, match=r"guidance is 2.0; accepted: 1, as the prior was not trained"):
        _prior("transformer", null_label=False).sample(SHAPE, LABELS, UPPER, guidance=2.0)
    with pytest.raises(ValueError, match="null_label is True; accepted without num_classes: False"):
        KINDS["transformer"](K, 2, null_label=True)
    with pytest.raises(ValueError, match="guidance is nan"):
        _prior("transformer").sample(SHAPE, LABELS, UPPER, guidance=float("nan"))
