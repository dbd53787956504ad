"""Augmentation: each image mirrored, enlarged and shifted at random, in training and when it is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from models.settings import setting
from vq_kernels.checks import check_share

if TYPE_CHECKING:
    from models.data.kinds import Kind

NOISE = 4  # uniform numbers that one image takes: mirror, zoom, and a shift of either axis


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """By how much images are changed; without any of these they stay as they are.

    ``AugmentSettings(mirror=True, zoom=0.1, shift=0.05)`` mirrors every other image, shows up to a tenth
    less of each side, enlarged, and moves what is shown by up to a twentieth of the side.
    """

    settings_title: ClassVar[str] = "augmentation"

    mirror: bool = setting(False, "mirror half of the images, left to right")
    zoom: float = setting(0.0, "show up to this share less of each side of an image, enlarged")
    shift: float = setting(0.0, "shift images by up to this share of each side")

    def check_augment(self) -> None:
        """TypeError or ValueError for the first setting that is out of range."""
        check_share(zoom=self.zoom, shift=self.shift)

    def check_augments(self, kind: Kind) -> None:
        """ValueError where data of a kind are to be changed that would not stay what they are."""
        if self.augments and not kind.augments:
            name = next(name for name in ("mirror", "zoom", "shift") if getattr(self, name))
            raise ValueError(
                f"{name} is {getattr(self, name)}, but the data are {kind.items}, which are not augmented; "
                f"leave it out"
            )

    @property
    def augments(self) -> bool:
        """Whether images are changed at all."""
        return bool(self.mirror or self.zoom or self.shift)


def augment(images: Tensor, noise: Tensor, settings: AugmentSettings) -> Tensor:
    """Images changed as ``settings`` say and ``noise`` decides: shape and dtype of ``images``.

    images: ``[B, C, H, W]``, of bytes or floats. noise: ``[B, NOISE]``, uniform in 0..1; equal noise changes
    an image equally, whatever the batch. What a shift brings in is the image reflected at its border; pixels
    between others are interpolated (bicubic).
    """
    if not settings.augments:
        return images
    if images.ndim != 4:
        raise ValueError(
            f"images is of shape {tuple(images.shape)}; accepted with mirror, zoom or shift: [B, C, H, W]"
        )
    mirrors = (noise[:, 0] < 0.5) & settings.mirror
    if not (settings.zoom or settings.shift):
        return torch.where(mirrors[:, None, None, None], images.flip(3), images)
    scale = 1 - settings.zoom * noise[:, 1]
    # The grid runs from -1 to 1 over an image, so that a share of the side is twice that.
    across, down = (2 * settings.shift * (2 * noise[:, axis] - 1) for axis in (2, 3))
    zero = torch.zeros_like(scale)
    rows = [torch.where(mirrors, -scale, scale), zero, across, zero, scale, down]
    transform = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    changed = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    # Bicubic overshoots at edges; of each image by itself, whatever else is in the batch.
    low, high = (limit((1, 2, 3), keepdim=True).float() for limit in (images.amin, images.amax))
    changed = torch.clamp(changed, low, high)
    return changed if images.is_floating_point() else changed.round().to(images.dtype)
