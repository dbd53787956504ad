"""The levels in which data are held, and the range in which models see them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def level_count(dtype: torch.dtype) -> int:
    """How many levels an element of ``dtype``, uint8 or int16, has: 256 or 65,536."""
    info = torch.iinfo(dtype)
    return info.max - info.min + 1


def to_float(levels: Tensor) -> Tensor:
    """Levels to the models' value range, the lowest to -0.5 and the highest to 0.5: float32, the same shape.

    Bytes are ``x / 255 - 0.5``; samples of 16 bits are ``(x + 32768) / 65535 - 0.5``.
    """
    info = torch.iinfo(levels.dtype)
    return (levels.float() - info.min) / (info.max - info.min) - 0.5


def to_levels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The models' value range back to the levels of ``dtype``, rounded and clamped."""
    info = torch.iinfo(dtype)
    count = info.max - info.min
    return (((x.float() + 0.5) * count).round().clamp(0, count) + info.min).to(dtype)


def to_uint8(x: Tensor) -> Tensor:
    """The models' value range to bytes, clamped, as pixels and voxels are held."""
    return to_levels(x, torch.uint8)


def count_levels(levels: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many elements have each level, from the lowest on: ``[256]`` of uint8, ``[65536]`` of int16."""
    info = np.iinfo(levels.dtype)
    flat = levels.reshape(-1)
    shifted = flat if info.min == 0 else flat.astype(np.int32) - info.min
    return np.bincount(shifted, minlength=int(info.max) - int(info.min) + 1)
