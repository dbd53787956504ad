"""The settings that say which data to load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the text that ``--help`` shows for it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to load. ``None`` means: find out from the data."""

    data: str = option("digits", "digits, a folder (images, parquet or KaoKore), or a hub id")
    size: str | None = option(None, "resize the shorter side and crop the centre to this: 64, or 48x64")
    channels: int | None = option(None, "1 for grey, 3 for colour")
    image_column: str | None = option(None, "column of the images")
    label_column: str | None = option(None, "column of the labels")
    validation: float = option(0.1, "share of the training images set aside if there is no such split")
    test: float = option(0.2, "share of the training images set aside if there is no such split")
    limit: int | None = option(None, "use at most this many images of each split, drawn at random")
    cache_gb: float = option(4.0, "keep decoded images in memory up to this size")
    split_seed: int = option(0, "of the splits cut from the training images, and of what limit draws")
    cache_dir: str | None = option(None, "folder in which Hugging Face datasets keeps converted data")
