"""Best of several by the priors' own posterior, and settings of draws for each level."""

from __future__ import annotations

import pytest
import torch
from hierarchy_support import CLASSES, CODES, hierarchy

from models import TransformerPrior, sample_codes
from models.codes.rank import best_of, class_log_posterior

SHAPES = ((2, 2), (4, 4))


def _codes(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(CODES, (count, *shape), generator=generator) for shape in SHAPES]


def test_the_posterior_is_bayes_rule_over_both_levels() -> None:
    priors, codes = [prior.eval() for prior in hierarchy((2, 4))], _codes(5)
    posterior = class_log_posterior(priors, codes, batch_size=2)
    assert posterior.shape == (5, CLASSES)
    with torch.no_grad():
        joint = torch.stack(
            [
                priors[0].log_prob(codes[0], label) + priors[1].log_prob(codes[1], label, codes[0])
                for label in (torch.full((5,), number) for number in range(CLASSES))
            ],
            dim=1,
        )
    expected = joint.exp() / joint.exp().sum(1, keepdim=True)
    torch.testing.assert_close(posterior.exp(), expected, rtol=1e-4, atol=1e-6)


def test_the_candidate_whose_class_is_surest_is_kept() -> None:
    priors, codes = [prior.eval() for prior in hierarchy((2, 4))], _codes(12)
    labels = torch.tensor([3, 0, 7])
    chosen = best_of(priors, codes, labels, 4)
    posterior = class_log_posterior(priors, codes)
    for number, label in enumerate(labels.tolist()):
        best = 4 * number + int(posterior[4 * number : 4 * number + 4, label].argmax())
        assert all(torch.equal(kept[number], level[best]) for kept, level in zip(chosen, codes, strict=True))
    without = TransformerPrior(CODES, 8, shape=(2, 2), layers=1, heads=2)
    with pytest.raises(ValueError, match="the priors are without labels"):
        class_log_posterior([without], codes[:1])


def test_each_level_may_be_drawn_in_its_own_way() -> None:
    priors = [prior.eval() for prior in hierarchy((2, 4))]
    labels = torch.arange(6)

    def draw(**filters: object) -> tuple[torch.Tensor, ...]:
        return sample_codes(priors, SHAPES, labels, generator=torch.Generator().manual_seed(0), **filters)

    greedy_top = draw(top_k=(1, None))
    again = draw(top_k=(1, None), temperature=(0.1, 1.0))
    assert all(torch.equal(*pair) for pair in zip(greedy_top, again, strict=True))
    assert not torch.equal(greedy_top[0], draw()[0])
    assert torch.equal(draw(temperature=(0.5,))[1], draw(temperature=0.5)[1])
    with pytest.raises(
        ValueError, match=r"top_p is 0\.1,0\.2,0\.3; accepted: one value, or one for each of 2"
    ):
        draw(top_p=(0.1, 0.2, 0.3))
