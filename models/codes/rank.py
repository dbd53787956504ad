"""Ranking samples by what the priors say of their class: the best of several, without another classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.priors.hierarchy import code_log_prob

if TYPE_CHECKING:
    from models.priors.base import AutoregressivePrior


@torch.no_grad()
def class_log_posterior(
    priors: Sequence[AutoregressivePrior], codes: Sequence[Tensor], batch_size: int = 256
) -> Tensor:
    """log p(class | codes) by Bayes' rule for equally likely classes, in nats: float32 ``[B, classes]``.

    It is the logarithm of the softmax over the classes of log p(codes | class), the sum over the levels,
    each given the level above. codes: of every level, top first, ``[B, *shape]`` each. ValueError for priors
    without classes.

    For example, ten classes and codes ``[16, 4, 4]`` and ``[16, 8, 8]`` give ``[16, 10]``.
    """
    classes = priors[0].num_classes
    if classes is None or any(prior.num_classes != classes for prior in priors):
        raise ValueError("the priors are without labels; accepted: priors that were trained on labels")
    rows = []
    for start in range(0, len(codes[0]), batch_size):
        some = [level[start : start + batch_size] for level in codes]
        joint = [_log_prob(priors, some, number) for number in range(classes)]
        rows.append(torch.stack(joint, dim=1).log_softmax(dim=1))
    return torch.cat(rows)


def best_of(
    priors: Sequence[AutoregressivePrior], codes: Sequence[Tensor], labels: Tensor, candidates: int
) -> tuple[Tensor, ...]:
    """Of every ``candidates`` codes that follow each other the one whose class the priors are surest of.

    codes: of every level, top first, ``[B * candidates, *shape]`` each. labels: of each run of candidates,
    ``[B]``. Gives ``[B, *shape]`` each.
    """
    wanted = labels.repeat_interleave(candidates)
    posterior = class_log_posterior(priors, codes).gather(1, wanted[:, None])[:, 0]
    best = posterior.view(-1, candidates).argmax(dim=1)
    rows = torch.arange(len(labels), device=labels.device) * candidates + best
    return tuple(level[rows] for level in codes)


def _log_prob(priors: Sequence[AutoregressivePrior], codes: Sequence[Tensor], label: int) -> Tensor:
    """log p(codes | label): ``[B]``."""
    labels = torch.full((len(codes[0]),), label, device=codes[0].device)
    return code_log_prob(priors, codes, labels)
