"""Quality of reconstructions and use of codes, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vq_kernels.quantizers import perplexity, usage

MOST_COUNTED = 2**20  # values of a code: what quantizers count too


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), ``[B, C, H, W]`` in -0.5..0.5: ``[B]``.

    Gaussian window of 11 pixels, deviation 1.5; images smaller than 16 pixels take a uniform window of 5.
    The mean is over all pixels: torchmetrics pads by reflection, and of a small image the usual window
    would hold more reflections than image (below 6 pixels it cannot be padded at all).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    # Its luminance term asks for pixels from 0 on.
    small = min(images.shape[-2:]) < 16
    values = structural_similarity_index_measure(
        images.float() + 0.5,
        references.float() + 0.5,
        gaussian_kernel=not small,
        kernel_size=5 if small else 11,
        data_range=1.0,
        reduction="none",
    )
    if not isinstance(values, Tensor):
        raise TypeError("torchmetrics returned an image beside the similarity, which was not asked for")
    return values.reshape(len(images))


class ReconstructionMeter:
    """Squared error, SSIM and code counts over all batches seen.

    codebook_sizes: for each level, top first, the number of values of each of a position's Q codes; codes of
    more than ``MOST_COUNTED`` values are not counted. For example, a meter of a VQ-VAE-2 with 512 codes a
    level is ``ReconstructionMeter([(512,), (512,)])``.
    """

    def __init__(self, codebook_sizes: Sequence[Sequence[int]]) -> None:
        self.images, self.elements = 0, 0
        self.squared_error, self.similarity = 0.0, 0.0
        # For each level those of its Q codes, [K] each; None for a level that is not counted.
        self.counts: list[list[Tensor] | None] = [
            [torch.zeros(size, dtype=torch.int64) for size in sizes] if max(sizes) <= MOST_COUNTED else None
            for sizes in codebook_sizes
        ]

    def update(self, x: Tensor, reconstruction: Tensor, codes: Sequence[Tensor]) -> None:
        """Add a batch.

        x, reconstruction: ``[B, C, H, W]`` in the models' range; the reconstruction is clamped to the range
        of pixels, as a picture of it would be. codes: of every level, top first, as models give them.
        """
        reconstruction = reconstruction.float().clamp(-0.5, 0.5)
        self.images += len(x)
        self.elements += x.numel()
        self.squared_error += float((reconstruction - x).double().square().sum())
        self.similarity += float(ssim(reconstruction, x).double().sum())
        for counts, level in zip(self.counts, codes, strict=True):
            if counts is not None:
                columns = level.reshape(-1, len(counts)).cpu().unbind(1)
                for count, column in zip(counts, columns, strict=True):
                    count += torch.bincount(column, minlength=len(count))

    def compute(self, variance: float) -> dict[str, float]:
        """mse, nmse (over ``variance``), psnr in dB, ssim, and perplexity and usage of each level.

        Those of a level with several codes a position are the mean over these.
        """
        mse = self.squared_error / self.elements
        result = {
            "mse": mse,
            "nmse": mse / variance,
            "psnr": -10 * math.log10(max(mse, 1e-12)),
            "ssim": self.similarity / self.images,
        }
        for name, counts in zip(level_names(len(self.counts)), self.counts, strict=True):
            if counts is not None:
                result[f"perplexity{name}"] = _mean([float(perplexity(count)) for count in counts])
                result[f"usage{name}"] = _mean([float(usage(count)) for count in counts])
        return result

    def sums(self) -> Tensor:
        """All that was accumulated as one float64 vector, which may be summed over processes."""
        scalars = [self.images, self.elements, self.squared_error, self.similarity]
        counted = [count.double() for counts in self.counts if counts is not None for count in counts]
        return torch.cat([torch.tensor(scalars, dtype=torch.float64), *counted])

    def set_sums(self, sums: Tensor) -> None:
        """The inverse of :meth:`sums`."""
        self.images, self.elements = int(sums[0]), int(sums[1])
        self.squared_error, self.similarity = float(sums[2]), float(sums[3])
        start = 4
        for counts in self.counts:
            for count in counts or ():
                count.copy_(sums[start : start + len(count)].long())
                start += len(count)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def level_names(levels: int) -> list[str]:
    """Suffixes of per-level metrics, top first: none for one level, else ``_top``, ..., ``_bottom``."""
    if levels < 2:
        return [""] * levels
    return ["_top", *[f"_middle{number}" for number in range(levels - 2, 0, -1)], "_bottom"]
