"""Quality of reconstructions and use of codes, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.data.kinds import Images, Kind, all_figures
from models.data.kinds.similarity import similarities, ssim
from vq_kernels.quantizers import perplexity, usage

__all__ = ["MOST_COUNTED", "ReconstructionMeter", "is_better_higher", "level_names", "similarities", "ssim"]
MOST_COUNTED = 2**20  # values of a code: what quantizers count too


class ReconstructionMeter:
    """Squared error, the figures of the kind of data, and code counts over all batches seen.

    codebook_sizes: for each level, top first, the number of values of each of a position's Q codes; codes of
    more than ``MOST_COUNTED`` values are not counted. kind: of the data; None for images, whose figures need
    no more. For example, a meter of a VQ-VAE-2 with 512 codes a level is
    ``ReconstructionMeter([(512,), (512,)])``.
    """

    def __init__(self, codebook_sizes: Sequence[Sequence[int]], kind: Kind | None = None) -> None:
        self.kind = Images((), 0) if kind is None else kind
        self.images, self.elements = 0, 0
        self.squared_error, self.decibels = 0.0, 0.0  # sums over elements, and over images of PSNR in dB
        # The sum of each figure of the kind, and over how many images.
        self.totals = dict.fromkeys(self.kind.figures, 0.0)
        self.measured = dict.fromkeys(self.kind.figures, 0)
        # For each level those of its Q codes, [K] each; None for a level that is not counted.
        self.counts: list[list[Tensor] | None] = [
            [torch.zeros(size, dtype=torch.int64) for size in sizes] if max(sizes) <= MOST_COUNTED else None
            for sizes in codebook_sizes
        ]

    def update(self, x: Tensor, reconstruction: Tensor, codes: Sequence[Tensor]) -> None:
        """Add a batch.

        x, reconstruction: ``[B, C, *S]`` in the models' range; the reconstruction is clamped to the range
        of levels, as a picture of it would be. codes: of every level, top first, as models give them.
        """
        reconstruction = reconstruction.float().clamp(-0.5, 0.5)
        self.images += len(x)
        self.elements += x.numel()
        errors = (reconstruction - x).double().square().flatten(1)  # [B, C * H * W]
        self.squared_error += float(errors.sum())
        self.decibels += float(-10 * errors.mean(1).clamp_min(1e-12).log10().sum())
        for name, values in self.kind.measure(x, reconstruction).items():
            self.totals[name] += float(values.double().nansum())
            self.measured[name] += int(values.isfinite().sum())
        for counts, level in zip(self.counts, codes, strict=True):
            if counts is not None:
                columns = level.reshape(-1, len(counts)).cpu().unbind(1)
                for count, column in zip(counts, columns, strict=True):
                    count += torch.bincount(column, minlength=len(count))

    def compute(self, variance: float) -> dict[str, float]:
        """mse, nmse (over ``variance``), psnr in dB, the kind's figures, perplexity and usage of each level.

        ``psnr`` is that of the mean error, ``mean_psnr`` the mean over the images; of images ``ssim`` is the
        mean over all pixels, ``inner_ssim`` that over windows inside the image, see :func:`similarities`.
        A figure that no image has is left out. Perplexity and usage of a level with several codes a position
        are the mean over these.
        """
        mse = self.squared_error / self.elements
        result = {
            "mse": mse,
            "nmse": mse / variance,
            "psnr": -10 * math.log10(max(mse, 1e-12)),
            "mean_psnr": self.decibels / self.images,
        }
        result |= {name: self.totals[name] / count for name, count in self.measured.items() if count}
        for name, counts in zip(level_names(len(self.counts)), self.counts, strict=True):
            if counts is not None:
                result[f"perplexity{name}"] = _mean([float(perplexity(count)) for count in counts])
                result[f"usage{name}"] = _mean([float(usage(count)) for count in counts])
        return result

    def sums(self) -> Tensor:
        """All that was accumulated as one float64 vector, which may be summed over processes."""
        scalars = [self.images, self.elements, self.squared_error, self.decibels]
        scalars += [*self.totals.values(), *self.measured.values()]
        counted = [count.double() for counts in self.counts if counts is not None for count in counts]
        return torch.cat([torch.tensor(scalars, dtype=torch.float64), *counted])

    def set_sums(self, sums: Tensor) -> None:
        """The inverse of :meth:`sums`."""
        self.images, self.elements = int(sums[0]), int(sums[1])
        self.squared_error, self.decibels = float(sums[2]), float(sums[3])
        figures = len(self.totals)
        start = 4 + 2 * figures
        self.totals = dict(zip(self.totals, sums[4 : 4 + figures].tolist(), strict=True))
        self.measured = dict(zip(self.totals, map(int, sums[4 + figures : start]), strict=True))
        for counts in self.counts:
            for count in counts or ():
                count.copy_(sums[start : start + len(count)].long())
                start += len(count)


def is_better_higher(name: str) -> bool:
    """Whether a figure of :class:`ReconstructionMeter`, perhaps of one level, should be high."""
    of_kinds = [figure for figure, told in all_figures().items() if told.higher_is_better]
    return name.startswith(("psnr", "mean_psnr", "perplexity", "usage", *of_kinds))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def level_names(levels: int) -> list[str]:
    """Suffixes of per-level metrics, top first: none for one level, else ``_top``, ..., ``_bottom``."""
    if levels < 2:
        return [""] * levels
    return ["_top", *[f"_middle{number}" for number in range(levels - 2, 0, -1)], "_bottom"]
