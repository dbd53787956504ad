"""Quality of reconstructions and use of codes, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vq_kernels.quantizers import perplexity, usage

_SIMILARITIES = ("similarity", "inner_similarity")
_SUMS = ("squared_error", *_SIMILARITIES, "decibels")
MOST_COUNTED = 2**20  # values of a code: what quantizers count too


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, the mean over all pixels: see :func:`similarities`."""
    return similarities(images, references)[0]


def similarities(images: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Structural similarity of each image by both definitions, ``[B, C, H, W]`` in -0.5..0.5: ``[B]`` each.

    Gaussian window of 11 pixels, deviation 1.5 (Wang et al. 2004); images smaller than 16 pixels take a
    uniform window of 5. The first is the mean over the windows around all pixels, with the image reflected
    at its borders: of a small image the usual window would hold more reflections than image (below 6
    pixels it cannot be reflected at all). The second is the mean over the windows that lie inside the
    image, as the paper's own code has it; where none does, over those in the middle.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    # Its luminance term asks for pixels from 0 on.
    small = min(images.shape[-2:]) < 16
    size = 5 if small else 11
    values = structural_similarity_index_measure(
        images.float() + 0.5,
        references.float() + 0.5,
        gaussian_kernel=not small,
        kernel_size=size,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    if isinstance(values, Tensor):
        raise TypeError("torchmetrics returned no image beside the similarity, which was asked for")
    everywhere, image = values  # [B], [B, C, H, W]
    top, left = (min(size // 2, (side - 1) // 2) for side in images.shape[-2:])
    inside = image[..., top : image.shape[-2] - top, left : image.shape[-1] - left]
    return everywhere.reshape(len(images)), inside.flatten(1).mean(1)


class ReconstructionMeter:
    """Squared error, SSIM and code counts over all batches seen.

    codebook_sizes: for each level, top first, the number of values of each of a position's Q codes; codes of
    more than ``MOST_COUNTED`` values are not counted. For example, a meter of a VQ-VAE-2 with 512 codes a
    level is ``ReconstructionMeter([(512,), (512,)])``.
    """

    def __init__(self, codebook_sizes: Sequence[Sequence[int]]) -> None:
        self.images, self.elements = 0, 0
        # Over images: of squared errors, both kinds of similarity, and PSNR in dB.
        self.squared_error, self.similarity, self.inner_similarity, self.decibels = 0.0, 0.0, 0.0, 0.0
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
        errors = (reconstruction - x).double().square().flatten(1)  # [B, C * H * W]
        self.squared_error += float(errors.sum())
        self.decibels += float(-10 * errors.mean(1).clamp_min(1e-12).log10().sum())
        for name, values in zip(_SIMILARITIES, similarities(reconstruction, x), strict=True):
            setattr(self, name, getattr(self, name) + float(values.double().sum()))
        for counts, level in zip(self.counts, codes, strict=True):
            if counts is not None:
                columns = level.reshape(-1, len(counts)).cpu().unbind(1)
                for count, column in zip(counts, columns, strict=True):
                    count += torch.bincount(column, minlength=len(count))

    def compute(self, variance: float) -> dict[str, float]:
        """mse, nmse (over ``variance``), psnr in dB, ssim, and perplexity and usage of each level.

        ``psnr`` is that of the mean error, ``mean_psnr`` the mean over the images; ``ssim`` is the mean
        over all pixels, ``inner_ssim`` that over windows inside the image, see :func:`similarities`. Those
        of a level with several codes a position are the mean over these.
        """
        mse = self.squared_error / self.elements
        result = {
            "mse": mse,
            "nmse": mse / variance,
            "psnr": -10 * math.log10(max(mse, 1e-12)),
            "mean_psnr": self.decibels / self.images,
            "ssim": self.similarity / self.images,
            "inner_ssim": self.inner_similarity / self.images,
        }
        for name, counts in zip(level_names(len(self.counts)), self.counts, strict=True):
            if counts is not None:
                result[f"perplexity{name}"] = _mean([float(perplexity(count)) for count in counts])
                result[f"usage{name}"] = _mean([float(usage(count)) for count in counts])
        return result

    def sums(self) -> Tensor:
        """All that was accumulated as one float64 vector, which may be summed over processes."""
        scalars = [self.images, self.elements, *(getattr(self, name) for name in _SUMS)]
        counted = [count.double() for counts in self.counts if counts is not None for count in counts]
        return torch.cat([torch.tensor(scalars, dtype=torch.float64), *counted])

    def set_sums(self, sums: Tensor) -> None:
        """The inverse of :meth:`sums`."""
        self.images, self.elements = int(sums[0]), int(sums[1])
        for place, name in enumerate(_SUMS):
            setattr(self, name, float(sums[2 + place]))
        start = 2 + len(_SUMS)
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
