"""How well a classifier tells samples from real images, and which real image is nearest to each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.data import to_float
from models.evaluation.classifier import Examples, class_probabilities, train_classifier

REAL, DRAWN = 1, 0
LEAST_COMPARED = 4  # samples, and as many real images


class TwoSample(NamedTuple):
    """Result of :func:`two_sample`."""

    accuracy: float  # over real images and samples alike, 0.5 if they cannot be told apart
    realism: Tensor  # [N], the probability that each sample is a real image


def two_sample(
    real: Tensor,
    samples: Tensor,
    *,
    steps: int = 600,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> TwoSample:
    """Train a classifier to tell ``samples`` from ``real``; judge each image by one that has not seen it.

    Both are levels ``[N, C, *S]`` of one dtype; as many of each are taken, at random where there are more
    real images. Two classifiers are trained, on one half each, and judge the other half (Lopez-Paz and Oquab,
    2017, arXiv:1610.06545). The accuracy grows with the number of images, and is to be compared for equal
    numbers only. device: of the classifiers, as torch names it. ValueError for fewer than four images of
    either, or more samples than real images.
    """
    count = len(samples)
    if not LEAST_COMPARED <= count <= len(real):
        raise ValueError(
            f"samples is of {count} images, with {len(real)} real ones; accepted: {LEAST_COMPARED} or more, "
            f"and as many real ones"
        )
    generator = torch.Generator().manual_seed(seed)
    real = real[torch.randperm(len(real), generator=generator)[:count]]
    images = torch.cat([samples, real])
    labels = torch.tensor([DRAWN, REAL]).repeat_interleave(count)
    half = torch.randperm(count, generator=generator)[: count // 2]
    is_first = torch.zeros(count, dtype=torch.bool).index_fill_(0, half, True).repeat(2)
    realism = torch.empty(2 * count)
    for number, train_on in enumerate((is_first, ~is_first)):
        rows = train_on.nonzero()[:, 0]
        examples = Examples(lambda chosen, rows=rows: images[rows[chosen]], labels[rows])  # type: ignore[misc]
        network = train_classifier(
            examples, 2, steps=steps, seed=seed + number, device=device, progress=progress
        )
        realism[~train_on] = class_probabilities(network, images[~train_on])[:, REAL]
    accuracy = float(((realism > 0.5).long() == labels).float().mean())
    return TwoSample(accuracy, realism[:count])


def nearest(images: Tensor, among: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """For each of ``images`` the row of the nearest one ``among`` others, and the mean squared error to it.

    Both are levels ``[N, C, *S]``; errors are of the models' range, of length 1. Gives ``[N]`` int64 and
    float32.
    """
    others = to_float(among).flatten(1)
    rows, errors = [], []
    for some in images.split(batch_size):
        x = to_float(some).flatten(1)
        row = torch.cdist(x, others).argmin(dim=1)
        rows.append(row)
        errors.append((x - others[row]).square().mean(1))  # exactly 0 for equal ones, as cdist's is not
    return torch.cat(rows), torch.cat(errors)
