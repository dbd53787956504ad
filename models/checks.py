"""Checks of arguments that several models share; each names the argument, its value and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_at_least(lowest: int, **arguments: int) -> None:
    """Raises TypeError or ValueError for the first argument that is not an integer of at least ``lowest``."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}")


def check_dropout(dropout: float) -> None:
    """Raises TypeError or ValueError unless ``dropout`` is a number in [0, 1)."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float):
        raise TypeError(f"dropout must be a number, got {dropout!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


def check_weight(**arguments: float) -> None:
    """Raises TypeError or ValueError for the first argument that is not a number of at least 0."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_sizes(name: str, values: Any, shortest: int = 1, longest: int | None = None) -> tuple[int, ...]:
    """``values`` as a tuple; ValueError unless it is a sequence of enough whole numbers of at least 1."""
    fits = isinstance(values, Sequence) and not isinstance(values, str)
    if not (fits and all(isinstance(size, int) and size >= 1 for size in values)):
        raise ValueError(f"{name} must be whole numbers of at least 1 in a sequence, got {values!r}")
    if len(values) < shortest or (longest is not None and len(values) > longest):
        wanted = f"{shortest} numbers" if longest == shortest else f"{shortest} or more numbers"
        raise ValueError(f"{name} must be {wanted}, got {list(values)}")
    return tuple(values)


def check_dtype(x: Tensor, model: nn.Module) -> None:
    """ValueError unless ``x`` is of floats that the convolutions of ``model`` take."""
    own = next(model.parameters()).dtype
    if not x.is_floating_point():
        raise ValueError(
            f"x has dtype {x.dtype}, expected floats in -0.5..0.5; give models.data.to_float(x) for bytes"
        )
    # Between the shorter ones autocast translates.
    if (x.dtype == torch.float64) != (own == torch.float64):
        raise ValueError(f"x has dtype {x.dtype}, the weights have {own}; give x.to({own})")


def check_same_images(x: Tensor, parameters: Tensor) -> None:
    """ValueError unless decoded codes are of as many images as ``x``, and of its size."""
    if len(x) != len(parameters) or x.shape[2:] != parameters.shape[2:]:
        raise ValueError(
            f"x holds {len(x)} images of size {tuple(x.shape[2:])}, the codes are of {len(parameters)} of "
            f"size {tuple(parameters.shape[2:])}; give the codes of x"
        )


def check_divides(spatial: Sequence[int], ndim: int, downscale: int) -> None:
    """ValueError unless ``spatial`` are ``ndim`` sizes that ``downscale`` divides."""
    if len(spatial) != ndim or any(size < 1 or size % downscale for size in spatial):
        raise ValueError(
            f"spatial is {tuple(spatial)}, expected {ndim} sizes that the model's downscale of {downscale} "
            f"divides"
        )
