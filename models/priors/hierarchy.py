"""Log-probabilities of the code maps of all levels together, by the priors of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.priors.base import AutoregressivePrior


def code_log_prob(priors: Sequence[AutoregressivePrior], codes: Sequence[Tensor], labels: Tensor) -> Tensor:
    """log p(codes | labels), the sum over levels, in nats: ``[B]``. ValueError unless one prior a level."""
    return torch.stack(level_log_probs(priors, codes, labels)).sum(0)


def level_log_probs(
    priors: Sequence[AutoregressivePrior], codes: Sequence[Tensor], labels: Tensor
) -> list[Tensor]:
    """log p(codes of a level | labels, level above) in nats, top first: ``[B]`` each. ValueError as above."""
    if len(priors) != len(codes):
        raise ValueError(
            f"priors is of {len(priors)} levels; accepted: one for each of {len(codes)} of codes"
        )
    levels, upper = [], None
    for prior, level in zip(priors, codes, strict=True):
        conditions = labels if prior.num_classes is not None else None
        levels.append(prior.log_prob(level, conditions, upper))
        upper = level
    return levels
