"""Turning images that show the same thing from the left and from the right to one side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 16  # pixels a side of what is compared


def principal_axis(batches: Iterable[Tensor]) -> Tensor:
    """What distinguishes images from their mirror images most: float64 ``[h * w]``.

    It is the first principal component of the antisymmetric parts of images ``[B, C, H, W]``, bytes, in grey
    and at most 16 pixels a side. Its largest entry is positive.
    """
    parts = torch.cat([_antisymmetric(images) for images in batches])  # [N, h * w]
    _, axes = torch.linalg.eigh(parts.T @ parts)  # ascending
    axis = axes[:, -1]
    return axis * axis[axis.abs().argmax()].sign()


def turned(images: Tensor, axis: Tensor) -> Tensor:
    """Images ``[B, C, H, W]``, mirrored where that gives them the positive side of ``axis``."""
    sides = _antisymmetric(images) @ axis
    return torch.where((sides < 0)[:, None, None, None], images.flip(3), images)


def _antisymmetric(images: Tensor) -> Tensor:
    """Half the difference between each image and its mirror image: float64 ``[B, h * w]``."""
    height, width = images.shape[-2:]
    grey = images.float().mean(1, keepdim=True) / 255
    small = F.adaptive_avg_pool2d(grey, (min(_SIDE, height), min(_SIDE, width))).double()
    return (small - small.flip(3)).flatten(1) / 2
