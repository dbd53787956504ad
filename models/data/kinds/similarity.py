"""Structural similarity of images and volumes."""

from __future__ import annotations

import torch
from torch import Tensor


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, the mean over all pixels: see :func:`similarities`."""
    return similarities(images, references)[0]


def similarities(images: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Structural similarity of each image by both definitions, ``[B, C, H, W]`` in -0.5..0.5: ``[B]`` each.

    Gaussian window of 11 pixels, deviation 1.5 (Wang et al. 2004); images smaller than 16 pixels take a
    uniform window of 5. The first is the mean over the windows around all pixels, with the image reflected
    at its borders: of a small image the usual window would hold more reflections than image (below 6
    pixels it cannot be reflected at all). The second is the mean over the windows that lie inside the
    image, as the paper's own code has it; where none does, over those in the middle. Of volumes
    ``[B, C, D, H, W]`` the windows are cubes. In float32 inside autocast too: a variance is the difference
    of two means, of which bfloat16 leaves little.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    # Its luminance term asks for pixels from 0 on.
    sides = images.shape[2:]
    small = min(sides) < 16
    size = 5 if small else 11
    with torch.autocast(images.device.type, enabled=False):
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
    everywhere, inside = values  # [B], [B, C, *S]
    for axis, side in enumerate(sides, start=2):
        margin = min(size // 2, (side - 1) // 2)
        inside = inside.narrow(axis, margin, side - 2 * margin)
    return everywhere.reshape(len(images)), inside.flatten(1).mean(1)


def similarity_figures(x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
    """``ssim`` and ``inner_ssim`` of each item by the two definitions: ``[B]`` each."""
    return dict(zip(("ssim", "inner_ssim"), similarities(reconstruction, x), strict=True))
