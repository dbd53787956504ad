"""The kinds of data that models are trained on, one a file, and finding out which one data are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.data.kinds.audio import Sounds
from models.data.kinds.base import Figure, Kind, parse_size
from models.data.kinds.image import Images
from models.data.kinds.levels import count_levels, to_float, to_levels, to_uint8
from models.data.kinds.volume import Volumes
from vq_kernels.checks import check_choice

KINDS: tuple[type[Kind], ...] = (Images, Sounds, Volumes)
__all__ = [
    "KINDS",
    "Figure",
    "Images",
    "Kind",
    "Sounds",
    "Volumes",
    "all_figures",
    "count_levels",
    "kind_named",
    "kind_of_settings",
    "parse_size",
    "to_float",
    "to_levels",
    "to_uint8",
]


def kind_named(name: str) -> type[Kind]:
    """The kind that the setting ``kind`` names. ValueError."""
    check_choice(tuple(kind.name for kind in KINDS), kind=name)
    return next(kind for kind in KINDS if kind.name == name)


def kind_of_settings(settings: Mapping[str, Any]) -> Kind:
    """The kind and form of data from what :attr:`models.data.ImageData.settings` says of them.

    What was made before there were other kinds says nothing, and is images. ValueError for settings that say
    no form.
    """
    kind = kind_named(settings.get("kind", Images.name))
    try:
        return kind.from_settings(settings)
    except (AttributeError, KeyError, TypeError) as error:  # what a damaged file holds in their place
        raise ValueError(f"settings is {dict(settings)}; accepted: those of {kind.items}") from error


def all_figures() -> dict[str, Figure]:
    """The figures of every kind, by name."""
    return {name: figure for kind in KINDS for name, figure in kind.figures.items()}
