"""Quality of reconstructions and use of codes, accumulated batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vq_kernels.quantizers.metrics import perplexity, usage


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
    """Squared error, SSIM and code counts over all batches seen."""

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self.images, self.elements = 0, 0
        self.squared_error, self.similarity = 0.0, 0.0
        self.counts = [torch.zeros(size, dtype=torch.int64) for size in codebook_sizes]

    def update(self, x: Tensor, reconstruction: Tensor, codes: Sequence[Tensor]) -> None:
        """x and reconstruction ``[B, C, H, W]`` in the models' range; codes of every level, top first.

        The reconstruction is clamped to the range of pixels, as a picture of it would be.
        """
        reconstruction = reconstruction.float().clamp(-0.5, 0.5)
        self.images += len(x)
        self.elements += x.numel()
        self.squared_error += float((reconstruction - x).double().square().sum())
        self.similarity += float(ssim(reconstruction, x).double().sum())
        for counts, level in zip(self.counts, codes, strict=True):
            counts += torch.bincount(level.flatten().cpu(), minlength=len(counts))

    def compute(self, variance: float) -> dict[str, float]:
        """mse, nmse (over ``variance``), psnr in dB, ssim, and perplexity and usage of each level."""
        mse = self.squared_error / self.elements
        result = {
            "mse": mse,
            "nmse": mse / variance,
            "psnr": -10 * math.log10(max(mse, 1e-12)),
            "ssim": self.similarity / self.images,
        }
        for name, counts in zip(level_names(len(self.counts)), self.counts, strict=True):
            result[f"perplexity{name}"] = float(perplexity(counts))
            result[f"usage{name}"] = float(usage(counts))
        return result


def level_names(levels: int) -> list[str]:
    """Suffixes of per-level metrics, top first: none for one level, else ``_top``, ..., ``_bottom``."""
    if levels < 2:
        return [""] * levels
    return ["_top", *[f"_middle{number}" for number in range(levels - 2, 0, -1)], "_bottom"]
