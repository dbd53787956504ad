"""From a source to three splits of equal form: which images, of what size, with which labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.data.cache import WORTH_KEEPING, DecodedCache
from models.data.columns import (
    find_image_column,
    find_label_column,
    joined_labels,
    number_labels,
    undecoded,
    with_image_type,
)
from models.data.images import GREY_MODES, ImageSplit, cropped_size, some_rows
from models.data.orientation import principal_axis
from models.data.records import open_image
from models.data.settings import DataConfig
from models.data.sources import DataError, SourceData, location, open_source
from models.data.splits import SPLITS, content_hashes, named_splits, repeated_images, split_rows
from models.progress import progress_bar
from vq_kernels.checks import check_choice

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageData:
    """The three splits and what is true of all of them.

    ``load_data(DataConfig(data="digits"))`` has 1,250 images to train on, 179 for validation and 368 for the
    test, a ``size`` of (8, 8), one channel and the class names "0" to "9".

    class_names: name of each label; empty for data without labels.
    settings: what, besides ``name``, says which images the splits hold and in what form.
    known_variance: ``variance``, if it has been computed before.
    left_out: what the source holds beside these images, and why it is not among them, in words.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    left_out: tuple[str, ...] = ()
    known_variance: float | None = None

    @property
    def digests(self) -> dict[str, str]:
        """Of each split what changes with any of its images or labels, or their order."""
        return {name: self.split(name).digest() for name in SPLITS}

    def digest(self) -> str:
        """Changes with any image or label of any split, and not with where the files lie."""
        return hashlib.sha256("\n".join(self.digests.values()).encode()).hexdigest()

    def describe(self) -> str:
        """One line that says what the splits hold, and what was left out of them and why."""
        sizes = ", ".join(f"{len(self.split(name))} {name}" for name in SPLITS)
        colours = "grey (1 channel)" if self.channels == 1 else "colour (3 channels)"
        form = f"{self.size[0]}x{self.size[1]}, {colours}"
        line = f"{self.name}: {sizes} images of {form}; {self._describe_classes()}"
        pairs = repeated_images({name: self.split(name).hashes for name in SPLITS})
        repeated = [f"{count} of {second} are in {first} too" for (first, second), count in pairs.items()]
        line += f"; equal images in two splits: {', '.join(repeated)}" if repeated else ""
        return line + (f"; left out: {', '.join(self.left_out)}" if self.left_out else "")

    def _describe_classes(self, most: int = 20) -> str:
        if self.train.labels is None:
            return "no labels"
        counts = self.train.labels.bincount(minlength=len(self.class_names)).tolist()
        classes = [f"{name} {count}" for name, count in zip(self.class_names, counts, strict=True)]
        more = ", ..." if len(classes) > most else ""
        return f"{len(classes)} classes in train: {', '.join(classes[:most])}{more}"

    @cached_property
    def variance(self) -> float:
        """Of all training pixels in the models' range, what squared errors are normalised by.

        Of data split by number it is, as it was before, that of at most 10,000 images.
        """
        if self.known_variance is not None:
            return self.known_variance
        if "split_by" in self.settings or len(self.train) <= 10_000:
            return _variance(self.train.histogram())
        return _variance(self.train.histogram(torch.linspace(0, len(self.train) - 1, 10_000).long().tolist()))

    def split(self, name: str) -> ImageSplit:
        """The split called ``name``; DataError for another name than train, validation and test."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise DataError(f"split is {name!r}; accepted: {', '.join(splits)}")
        return splits[name]

    def label_of(self, name: str) -> int:
        """The label called ``name``; DataError listing the names of all classes."""
        if name not in self.class_names:
            names = ", ".join(self.class_names) or "none, the data have no labels"
            raise DataError(f"{self.name} has no class {name!r}; its classes are: {names}")
        return self.class_names.index(name)


def load_data(config: DataConfig, *, stream: bool = False, progress: bool = False) -> ImageData:
    """Open the data that ``config`` names, check them, and split and decode their images.

    stream: for a single pass. Images are decoded when their batch is read, none before, and none are kept;
    a bad one raises DataError then. Otherwise everything that is wrong raises DataError here, before
    anything is trained. progress: show a bar while images are read and decoded.
    """
    check_choice(("content", "number"), split_by=config.split_by)
    return data_from(open_source(config), config, stream=stream, progress=progress)


def data_from(
    source: SourceData, config: DataConfig, *, stream: bool = False, progress: bool = False
) -> ImageData:
    """What :func:`load_data` does, with data that are open already."""
    if config.limit is not None and config.limit < 1:
        raise DataError(f"limit is {config.limit}; accepted: an integer of at least 1, none for all images")
    named, left_out = named_splits(source.splits, config)
    named = {name: joined_labels(with_image_type(split), config) for name, split in named.items()}
    image_column = find_image_column(named["train"], config)
    label_column = find_label_column(named["train"], config)
    for name, split in named.items():
        for column in (image_column, label_column):
            if column is not None and column not in split.column_names:
                raise DataError(f"split {name} of {config.data} lacks the column {column!r}, train has it")
    named = {name: undecoded(split, image_column) for name, split in named.items()}
    sizes = {name: len(split) for name, split in named.items()}
    with progress_bar(sum(sizes.values()), "read", "image", enabled=progress) as bar:

        def hashes_of(datasets: dict[str, Dataset]) -> dict[str, NDArray[np.bytes_]]:
            return {
                name: content_hashes(split, image_column, source.roots, bar.update)
                for name, split in datasets.items()
            }

        by_content = config.split_by == "content"
        all_hashes = hashes_of(named) if by_content else None
        rows, beyond = split_rows(sizes, all_hashes, config)
        splits = {name: named[origin].select(chosen) for name, (origin, chosen) in rows.items()}
        if all_hashes is None:
            hashes = hashes_of(splits)
        else:
            hashes = {name: all_hashes[origin][chosen] for name, (origin, chosen) in rows.items()}
    if beyond:
        left_out.append(f"{beyond} images beyond the limit of {config.limit} a split")
    labels, class_names = number_labels(splits, label_column)
    first = open_image(splits["train"][0][image_column], 0, source.roots)
    if config.crop is not None and not 0 < config.crop <= 1:
        raise DataError(
            f"crop is {config.crop}; accepted: a share above 0, up to 1, none for the whole image"
        )
    own_size = cropped_size(first.height, first.width, config.crop or 1.0)
    size = parse_size(config.size) if config.size else own_size
    channels = (1 if first.mode in GREY_MODES else 3) if config.channels is None else config.channels
    if channels not in (1, 3):
        raise DataError(f"channels is {channels}; accepted: 1 for grey, 3 for colour")
    images = sum(len(split) for split in splits.values())
    nbytes = images * channels * size[0] * size[1]
    cache = not stream and nbytes <= config.cache_gb * 2**30
    store = None if nbytes < WORTH_KEEPING else _decoded_images(config, size, channels)
    with progress_bar(images, "decode", "image", enabled=progress and not stream) as bar:
        ready = {
            name: ImageSplit(
                split,
                image_column,
                labels[name],
                size,
                channels,
                hashes=hashes[name],
                roots=source.roots,
                resize=config.size is not None,
                recolour=config.channels is not None,
                cache=cache,
                store=store,
                crop=config.crop,
                check=not stream,
                on_decoded=bar.update,
            )
            for name, split in splits.items()
        }
    if config.orient:
        rows_of_axis = some_rows(len(ready["train"]), 10_000).split(256)
        axis = principal_axis(ready["train"].batch(some) for some in rows_of_axis)
        for split in ready.values():
            split.axis = axis
    settings = {
        "size": f"{size[0]}x{size[1]}",
        "channels": channels,
        "image_column": image_column,
        "label_column": label_column,
        **{name: getattr(config, name) for name in ("validation", "test", "limit", "split_seed")},
    }
    # What was made before there were these does not name them.
    settings |= {"crop": config.crop} if config.crop is not None else {}
    settings |= {"orient": True} if config.orient else {}
    if by_content:  # what was made before does not say how it was split
        settings["split_by"] = config.split_by
    return ImageData(
        config.data,
        ready["train"],
        ready["validation"],
        ready["test"],
        size=size,
        channels=channels,
        class_names=class_names,
        settings=settings,
        left_out=(*source.left_out, *left_out),
    )


def _decoded_images(config: DataConfig, size: tuple[int, int], channels: int) -> DecodedCache:
    """Where decoded images of this form of the data lie; other settings may refuse an image of theirs."""
    import datasets
    import PIL

    form = {
        "data": location(config.data),
        "resize": config.size is not None,
        "recolour": config.channels is not None,
        "crop": config.crop,
        "pillow": PIL.__version__,
    }
    root = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "decoded"
    return DecodedCache(root, form, (channels, *size), np.uint8)


def parse_size(size: str) -> tuple[int, int]:
    """``"64"`` or ``"48x64"`` to (height, width)."""
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise DataError(f"size is {size!r}; accepted: a number such as 64, or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def _variance(counts: Tensor) -> float:
    """Of pixels in the models' range, from how many have each of the 256 levels; exact to rounding."""
    levels, total = counts.tolist(), int(counts.sum())
    first = sum(level * count for level, count in enumerate(levels))
    second = sum(level * level * count for level, count in enumerate(levels))
    return max((total * second - first * first) / (total * total * 255 * 255), 1e-8)
