"""Samples as they are chosen step by step: plain draws, the best of several, those that look most real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models.codes.rank import best_of
from models.codes.sample import decode, sample_codes
from models.data.kinds import to_levels
from models.evaluation.realism import two_sample
from vq_kernels.checks import check_integer

if TYPE_CHECKING:
    from models.autoencoders.discrete import DiscreteAutoencoder
    from models.priors.base import AutoregressivePrior

AT_ONCE = 512  # codes that are drawn together


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How samples are drawn and chosen.

    temperature, top_k, top_p, guidance: see :func:`models.codes.sample.sample_codes`. best_of: candidates
    for each sample, of which the one stays whose class the priors are surest of. reject: such samples for
    each one that is kept, that which a classifier of real images against samples takes most for real.
    """

    temperature: float | Sequence[float] = 1.0
    top_k: int | Sequence[int | None] | None = None
    top_p: float | Sequence[float | None] | None = None
    guidance: float | Sequence[float] = 1.0
    best_of: int = 1
    reject: int = 1

    def __post_init__(self) -> None:
        check_integer(1, best_of=self.best_of, reject=self.reject)


class Stage(NamedTuple):
    """Samples after one step of choosing."""

    codes: tuple[Tensor, ...]  # of every level, top first, [B, *shape] int64
    images: Tensor  # [B, C, *S] on the CPU, in -0.5..0.5
    # Of rejection: the accuracy of its classifier over all candidates and as many real codes.
    told_apart: float | None = None


def draw_stages(
    model: DiscreteAutoencoder,
    priors: Sequence[AutoregressivePrior],
    shapes: Sequence[Sequence[int]],
    labels: Tensor,
    how: Drawing,
    *,
    real: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_drawn: Callable[[int], object] | None = None,
    progress: bool = False,
) -> dict[str, Stage]:
    """One sample for each label, after every step: ``plain``, ``ranked`` with best_of, ``kept`` with reject.

    The last one is what was asked for; the others show what choosing has added. ``best_of * reject``
    samples are drawn for each. real: levels ``[N, C, *S]``, decoded codes of real images, at least ``reject``
    times as many as labels: what rejection compares with. on_drawn: called with the number of codes after
    every position. ValueError.
    """
    if how.reject > 1 and (real is None or len(real) < len(labels) * how.reject):
        raise ValueError(
            f"reject is {how.reject} for {len(labels)} samples; accepted: up to one sample for each of "
            f"{0 if real is None else len(real)} real codes"
        )
    plain: list[tuple[Tensor, ...]] = []
    ranked: list[tuple[Tensor, ...]] = []
    for some in labels.repeat_interleave(how.reject).split(max(1, AT_ONCE // how.best_of)):
        drawn = sample_codes(
            priors,
            shapes,
            some.repeat_interleave(how.best_of),
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            guidance=how.guidance,
            generator=generator,
            on_drawn=on_drawn,
        )
        plain.append(tuple(level[:: how.best_of] for level in drawn))
        ranked.append(best_of(priors, drawn, some, how.best_of) if how.best_of > 1 else plain[-1])
    told_apart: float | None = None
    # Of the samples among which one is kept, the first stands for what it would have been without.
    stages = {"plain": [level[:: how.reject] for level in _joined(plain)]}
    candidates = _joined(ranked)
    if how.best_of > 1:
        stages["ranked"] = [level[:: how.reject] for level in candidates]
    if how.reject > 1 and real is not None:
        images = to_levels(decode(model, candidates).cpu(), real.dtype)
        told = two_sample(real, images, device=str(labels.device), progress=progress)
        rows = torch.arange(len(labels)) * how.reject + told.realism.view(-1, how.reject).argmax(1)
        told_apart = told.accuracy
        stages["kept"] = [level[rows.to(level.device)] for level in candidates]
    return {
        name: Stage(tuple(codes), decode(model, codes).cpu(), told_apart if name == "kept" else None)
        for name, codes in stages.items()
    }


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(level) for level in zip(*parts, strict=True)]
