"""The settings that say which data to load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from models.settings import setting
from vq_kernels.checks import check_integer, check_number

NO_LABELS = "none"  # the label_column of items that are to be taken without labels


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, sounds or volumes to load, and in what form. ``None`` means: as the data have it.

    ``DataConfig(data="digits", size="16")`` gives 1,797 handwritten digits of 16 x 16, of which 368 are set
    aside for the test and 179 for validation, by the rule of :mod:`models.data.splits`.
    """

    settings_title: ClassVar[str] = "data"

    data: str = setting(
        "digits", "digits, a folder (images, sounds, volumes, parquet or KaoKore), or a hub id"
    )
    kind: str | None = setting(None, "image, audio or volume, where the data hold several")
    size: str | None = setting(
        None, "images, volumes: scale the shortest side and crop the centre to this: 64, 48x64 or 28x32x28"
    )
    crop: float | None = setting(
        None, "images: first crop the centre of each to this share of its sides: 0.8"
    )
    orient: bool = setting(False, "images: mirror those that face the other way, see models.data.orientation")
    channels: int | None = setting(None, "1 for grey, 3 for colour; sounds: 1 for mono, 2 for stereo")
    length: int | None = setting(
        None, "sounds: cut or pad to this many samples; by default those of the longest"
    )
    rate: int | None = setting(None, "sounds: resample to this many samples a second")
    value_range: str | None = setting(
        None, "volumes not of bytes: LOW,HIGH that become 0 and 255; each: lowest and highest of each volume"
    )
    image_column: str | None = setting(None, "column of the images, sounds or volumes")
    label_column: str | None = setting(
        None,
        "column of the labels, or columns whose combinations are the classes: gender,status; none: no labels",
        none_is_text=True,
    )
    subset: str | None = setting(None, "which configuration of a data set that has several")
    validation: float = setting(0.1, "share of the training images set aside if there is no such split")
    test: float = setting(0.2, "share of the training images set aside if there is no such split")
    limit: int | None = setting(None, "use at most this many items of each split, drawn at random")
    cache_gb: float = setting(4.0, "keep decoded items up to this size, on disk and mapped into memory")
    split_seed: int = setting(0, "of the splits cut from the training images, and of what limit draws")
    split_by: str = setting("content", "content: equal images fall together; number: as earlier runs")
    cache_dir: str | None = setting(
        None, "folder of converted and decoded data, by default that of Hugging Face datasets"
    )


def check_data(config: DataConfig) -> None:
    """ValueError or TypeError for settings that mean nothing with any data."""
    check_integer(-(2**63), split_seed=config.split_seed)
    if config.split_seed >= 2**64:  # torch's generator takes no more
        raise ValueError(f"split_seed is {config.split_seed}; accepted: an integer below 2**64")
    check_number(cache_gb=config.cache_gb)
