"""log p(x) of a model with codes by summing over every map of codes, where there are few enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.autoencoders.discrete import DiscreteAutoencoder
from models.pretrained import evaluating
from models.priors.base import AutoregressivePrior
from models.priors.hierarchy import code_log_prob

MOST_MAPS = 2**16


class ExactLikelihood(NamedTuple):
    """Of images ``[B, C, *S]``, in nats: float64 ``[B]`` each.

    log_prob: log p(x) = log sum_z p(x | z) p(z) over all maps z. encoded: log p(x | z_q) p(z_q) of the map
    that the encoder chooses, which is at most log p(x) and taken for it. best: the highest term of the sum.
    """

    log_prob: Tensor
    encoded: Tensor
    best: Tensor


@torch.no_grad()
def exact_likelihood(
    model: DiscreteAutoencoder,
    x: Tensor,
    priors: Sequence[AutoregressivePrior] = (),
    chunk: int = 1024,
) -> ExactLikelihood:
    """log p(x) summed over all code maps, beside the one term that the encoder chooses.

    priors: unconditional, one a level, top first; without them all maps are equally likely. chunk: maps that
    are decoded at once. ValueError where there are more than ``MOST_MAPS`` maps, or for priors of classes.

    For example, 4 positions of 8 codes have 4,096 maps.
    """
    for prior in priors:
        if prior.num_classes is not None:
            raise ValueError(f"num_classes is {prior.num_classes}; accepted: priors without classes")
    shapes = model.code_shapes(x.shape[2:])
    maps = count_maps(model, x.shape[2:])
    if maps > MOST_MAPS:
        raise ValueError(f"the number of code maps is {maps}; accepted: at most {MOST_MAPS}")
    terms = []
    with evaluating(model, *priors):
        for start in range(0, maps, chunk):
            numbers = torch.arange(start, min(start + chunk, maps), device=x.device)
            codes = _codes_of(numbers, shapes, model.codebook_sizes)
            terms.append(model.log_prob_of_maps(x, codes).double() + _log_prior(priors, codes, maps))
        encoded = model.encode(x)
        likelihood = model.decoder_log_prob(x, encoded).double().flatten(1).sum(1)
        chosen = likelihood + _log_prior(priors, encoded, maps)
    all_terms = torch.cat(terms, dim=1)  # [B, maps]
    return ExactLikelihood(all_terms.logsumexp(1), chosen, all_terms.amax(1))


def count_maps(model: DiscreteAutoencoder, spatial: Sequence[int]) -> int:
    """How many different code maps images of size ``spatial`` can have, those of all levels together."""
    return math.prod(
        math.prod(sizes) ** (math.prod(shape) // len(sizes))
        for shape, sizes in zip(model.code_shapes(spatial), model.codebook_sizes, strict=True)
    )


def _codes_of(
    numbers: Tensor, shapes: Sequence[Sequence[int]], codebook_sizes: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The maps that are ``numbers`` ``[M]`` in a count through all of them: ``[M, *S_level]`` a level."""
    codes = []
    for shape, sizes in zip(shapes, codebook_sizes, strict=True):
        digits = []
        for size in list(sizes) * (math.prod(shape) // len(sizes)):
            digits.append(numbers % size)
            numbers = numbers // size
        codes.append(torch.stack(digits, dim=1).unflatten(1, tuple(shape)))
    return codes


def _log_prior(priors: Sequence[AutoregressivePrior], codes: Sequence[Tensor], maps: int) -> Tensor:
    """log p(codes), float64 ``[M]``; with no prior that of ``maps`` equally likely maps."""
    if not priors:
        return torch.full((len(codes[0]),), -math.log(maps), dtype=torch.float64, device=codes[0].device)
    labels = torch.zeros(len(codes[0]), dtype=torch.int64, device=codes[0].device)
    return code_log_prob(priors, codes, labels).double()
