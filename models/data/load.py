"""From a source to three splits of equal form: which images, of what size, with which labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from models.data.columns import (
    find_image_column,
    find_label_column,
    number_labels,
    undecoded,
    with_image_type,
)
from models.data.images import GREY_MODES, SPLITS, ImageSplit, to_float
from models.data.records import open_image
from models.data.settings import DataConfig
from models.data.sources import DataError, open_source, split_named
from models.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ImageData:
    """The three splits and what is true of all of them.

    ``load_data(DataConfig(data="digits"))`` has 1,258 images to train on, 180 for validation and 359 for the
    test, a ``size`` of (8, 8), one channel and the class names "0" to "9".

    class_names: name of each label; empty for data without labels.
    settings: what, besides ``name``, says which images the splits hold and in what form.
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

    def digest(self, on_read: Callable[[int], object] | None = None) -> str:
        """Changes with any image or label of any split: with the name, size or time of an image's file.

        on_read: called with the number of images each time some have been read.
        """
        digest = hashlib.sha256()
        for name in SPLITS:
            self.split(name).add_to_digest(digest, on_read)
        return digest.hexdigest()

    def describe(self) -> str:
        """One line that says what the splits hold, and what was left out of them and why."""
        sizes = ", ".join(f"{len(self.split(name))} {name}" for name in SPLITS)
        colours = "grey (1 channel)" if self.channels == 1 else "colour (3 channels)"
        form = f"{self.size[0]}x{self.size[1]}, {colours}"
        line = f"{self.name}: {sizes} images of {form}; {self._describe_classes()}"
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
        """Of the training pixels in the models' range, what squared errors are normalised by."""
        return _variance(self.train)

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
    anything is trained. progress: show a bar while images are decoded.
    """
    if config.limit is not None and config.limit < 1:
        raise DataError(f"limit is {config.limit}; accepted: an integer of at least 1, none for all images")
    source = open_source(config)
    splits, left_out = _three_splits(source.splits, config)
    splits = {name: with_image_type(split) for name, split in splits.items()}
    image_column = find_image_column(splits["train"], config)
    label_column = find_label_column(splits["train"], config)
    for name, split in splits.items():
        for column in (image_column, label_column):
            if column is not None and column not in split.column_names:
                raise DataError(f"split {name} of {config.data} lacks the column {column!r}, train has it")
    splits = {name: undecoded(split, image_column) for name, split in splits.items()}
    labels, class_names = number_labels(splits, label_column)
    first = open_image(splits["train"][0][image_column], 0, source.roots)
    size = parse_size(config.size) if config.size else (first.height, first.width)
    channels = (1 if first.mode in GREY_MODES else 3) if config.channels is None else config.channels
    if channels not in (1, 3):
        raise DataError(f"channels is {channels}; accepted: 1 for grey, 3 for colour")
    images = sum(len(split) for split in splits.values())
    cache = not stream and images * channels * size[0] * size[1] <= config.cache_gb * 2**30
    with progress_bar(images, "decode", "image", enabled=progress and not stream) as bar:
        ready = {
            name: ImageSplit(
                split,
                image_column,
                labels[name],
                size,
                channels,
                roots=source.roots,
                resize=config.size is not None,
                recolour=config.channels is not None,
                cache=cache,
                check=not stream,
                on_decoded=bar.update,
            )
            for name, split in splits.items()
        }
    settings = {
        "size": f"{size[0]}x{size[1]}",
        "channels": channels,
        "image_column": image_column,
        "label_column": label_column,
        **{name: getattr(config, name) for name in ("validation", "test", "limit", "split_seed")},
    }
    return ImageData(
        config.data,
        **ready,
        size=size,
        channels=channels,
        class_names=class_names,
        settings=settings,
        left_out=(*source.left_out, *left_out),
    )


def parse_size(size: str) -> tuple[int, int]:
    """``"64"`` or ``"48x64"`` to (height, width)."""
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise DataError(f"size is {size!r}; accepted: a number such as 64, or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def _three_splits(
    source_splits: dict[str, Dataset], config: DataConfig
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits by the names used here, and what is not among them.

    A missing validation or test split is cut from the training split, always the same way.
    """
    for name in ("validation", "test"):
        if not 0 < getattr(config, name) < 0.5:
            raise DataError(f"{name} is {getattr(config, name)}; accepted: a share between 0 and 0.5")
    splits: dict[str, Dataset] = {}
    left_out: list[str] = []
    for source_name, split in source_splits.items():
        name = split_named(source_name) or ""
        if not name:
            left_out.append(f"the split {source_name} of {len(split)} images")
        elif name in splits:
            raise DataError(
                f"{config.data} has the split {name} twice, also as {source_name}; keep one of them"
            )
        else:
            splits[name] = split
    if "train" not in splits:
        raise DataError(f"{config.data} has the splits {', '.join(source_splits)}; one must be called train")
    order = _shuffled(splits["train"], config)
    missing = [name for name in ("test", "validation") if name not in splits]
    shares = {name: round(getattr(config, name) * len(order)) for name in missing}
    if any(share < 1 for share in shares.values()) or sum(shares.values()) >= len(order):
        raise DataError(f"{config.data} has only {len(order)} training images, too few to split")
    train = splits["train"]
    for name, share in shares.items():
        taken, order = order[:share], order[share:]
        splits[name] = train.select(sorted(taken))
    splits["train"] = train.select(sorted(order)) if missing else train
    beyond = 0
    for name in SPLITS:
        if len(splits[name]) == 0:
            raise DataError(f"split {name} of {config.data} is empty")
        if config.limit is not None:
            # Not the first ones: many data sets are sorted by class.
            chosen = sorted(_shuffled(splits[name], config)[: config.limit])
            beyond += len(splits[name]) - len(chosen)
            splits[name] = splits[name].select(chosen)
    if beyond:
        left_out.append(f"{beyond} images beyond the limit of {config.limit} a split")
    return {name: splits[name] for name in SPLITS}, left_out


def _shuffled(split: Dataset, config: DataConfig) -> list[int]:
    """The row numbers of ``split`` in an order that depends on ``split_seed`` and their number alone."""
    generator = torch.Generator().manual_seed(config.split_seed)
    order: list[int] = torch.randperm(len(split), generator=generator).tolist()
    return order


def _variance(split: ImageSplit, sample: int = 10_000) -> float:
    """Variance of the pixels of evenly spaced training images."""
    rows = torch.linspace(0, len(split) - 1, min(sample, len(split))).long()
    return max(float(to_float(split.batch(rows)).var(correction=0)), 1e-8)
