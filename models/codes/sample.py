"""Samples from priors and a decoder: codes top to bottom, then images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.priors.filters import check_filters

if TYPE_CHECKING:
    from models.autoencoders.discrete import DiscreteAutoencoder
    from models.priors.base import AutoregressivePrior


@torch.no_grad()
def sample_codes(
    priors: Sequence[AutoregressivePrior],
    shapes: Sequence[Sequence[int]],
    labels: Tensor,
    *,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int | None] | None = None,
    top_p: float | Sequence[float | None] | None = None,
    guidance: float | Sequence[float] = 1.0,
    generator: torch.Generator | None = None,
    on_drawn: Callable[[int], object] | None = None,
) -> tuple[Tensor, ...]:
    """Draw the codes of every level for each label, top first: int64 ``[B, *shape]`` each.

    shapes: of the codes of one image at each level, top first. labels: ``[B]``; unconditional priors use
    their number only. temperature, top_k, top_p, guidance: for all levels, or one for each, top first; these
    and generator and on_drawn: see :meth:`models.priors.base.AutoregressivePrior.sample`. Raises TypeError or
    ValueError, by the priors too.

    For example, two priors of a VQ-VAE-2, the shapes ``((4, 4), (8, 8))`` and labels ``[16]`` give codes
    ``[16, 4, 4]`` and ``[16, 8, 8]``.
    """
    if len(priors) != len(shapes):
        raise ValueError(f"priors is of {len(priors)} levels; accepted: one for each of {len(shapes)} shapes")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    filters = {name: of_levels(name, value, len(shapes)) for name, value in given.items()}
    for values in zip(filters["temperature"], filters["top_k"], filters["top_p"], strict=True):
        check_filters(*values)  # of all levels, before the top one is drawn
    codes: list[Tensor] = []
    for number, (prior, shape) in enumerate(zip(priors, shapes, strict=True)):
        level = prior.sample(
            (len(labels), *shape),
            labels=labels if prior.num_classes is not None else None,
            upper=codes[-1] if codes else None,
            **{name: values[number] for name, values in filters.items()},
            generator=generator,
            on_drawn=on_drawn,
        )
        codes.append(level)
    return tuple(codes)


def of_levels(name: str, value: Any, levels: int) -> list[Any]:
    """A value for each level, from one for all or one for each; ValueError for another number of them."""
    if not isinstance(value, list | tuple):
        return [value] * levels
    if len(value) not in (1, levels):
        shown = ",".join(map(str, value))
        raise ValueError(
            f"{name} is {shown}; accepted: one value, or one for each of {levels} levels, top first"
        )
    return list(value) * (levels if len(value) == 1 else 1)


@torch.no_grad()
def decode(model: DiscreteAutoencoder, codes: Sequence[Tensor], batch_size: int = 256) -> Tensor:
    """The mean images of codes, decoded in batches: ``[B, C, H, W]`` in -0.5..0.5."""
    images = [
        model.decode_codes([level[start : start + batch_size] for level in codes])
        for start in range(0, len(codes[0]), batch_size)
    ]
    return torch.cat(images).clamp(-0.5, 0.5)
