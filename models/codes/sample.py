"""Samples from priors and a decoder: codes top to bottom, then images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.autoencoders.discrete import DiscreteAutoencoder
    from models.priors.base import AutoregressivePrior


@torch.no_grad()
def sample_codes(
    priors: Sequence[AutoregressivePrior],
    shapes: Sequence[Sequence[int]],
    labels: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    on_drawn: Callable[[int], object] | None = None,
) -> tuple[Tensor, ...]:
    """Draw the codes of every level for each label, top first: int64 ``[B, *shape]`` each.

    shapes: of the codes of one image at each level, top first. labels: ``[B]``; unconditional priors use
    their number only. temperature, top_k, top_p, generator, on_drawn: see
    :meth:`models.priors.base.AutoregressivePrior.sample`. Raises TypeError or ValueError, by the priors too.

    For example, two priors of a VQ-VAE-2, the shapes ``((4, 4), (8, 8))`` and labels ``[16]`` give codes
    ``[16, 4, 4]`` and ``[16, 8, 8]``.
    """
    if len(priors) != len(shapes):
        raise ValueError(f"priors is of {len(priors)} levels; accepted: one for each of {len(shapes)} shapes")
    codes: list[Tensor] = []
    for prior, shape in zip(priors, shapes, strict=True):
        level = prior.sample(
            (len(labels), *shape),
            labels=labels if prior.num_classes is not None else None,
            upper=codes[-1] if codes else None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            on_drawn=on_drawn,
        )
        codes.append(level)
    return tuple(codes)


@torch.no_grad()
def decode(model: DiscreteAutoencoder, codes: Sequence[Tensor], batch_size: int = 256) -> Tensor:
    """The mean images of codes, decoded in batches: ``[B, C, H, W]`` in -0.5..0.5."""
    images = [
        model.decode_codes([level[start : start + batch_size] for level in codes])
        for start in range(0, len(codes[0]), batch_size)
    ]
    return torch.cat(images).clamp(-0.5, 0.5)
