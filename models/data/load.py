"""From a source to three splits of equal form: columns, labels, sizes and variance in one place."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.images import GREY_MODES, SPLITS, ImageSplit, open_image, to_float
from models.data.settings import DataConfig
from models.data.sources import DataError, open_source

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_COLUMNS = ("label", "labels", "status", "fine_label", "class", "target")


@dataclass(frozen=True)
class ImageData:
    """The three splits and what is true of all of them.

    ``load_data(DataConfig(data="digits"))`` has 1,258 images to train on, 180 for validation and 359 for the
    test, a ``size`` of (8, 8), one channel and the class names "0" to "9".

    class_names: name of each label; empty for data without labels.
    settings: what, besides ``name``, says which images the splits hold and in what form.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    settings: dict[str, Any]

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


def load_data(config: DataConfig, *, stream: bool = False) -> ImageData:
    """Open the data that ``config`` names, check them, and split and decode their images.

    stream: for a single pass. Images are decoded when their batch is read, none before, and none are kept;
    a bad one raises DataError then. Otherwise everything that is wrong raises DataError here, before
    anything is trained.
    """
    if config.limit is not None and config.limit < 1:
        raise DataError(f"limit is {config.limit}; accepted: an integer of at least 1, none for all images")
    splits = _three_splits(open_source(config.data, config.cache_dir), config)
    image_column = _image_column(splits["train"], config)
    label_column = _label_column(splits["train"], config)
    for name, split in splits.items():
        for column in (image_column, label_column):
            if column is not None and column not in split.column_names:
                raise DataError(f"split {name} of {config.data} lacks the column {column!r}, train has it")
    splits = {name: _undecoded(split, image_column) for name, split in splits.items()}
    labels, class_names = _labels(splits, label_column)
    first = open_image(splits["train"][0][image_column], 0)
    size = parse_size(config.size) if config.size else (first.height, first.width)
    channels = (1 if first.mode in GREY_MODES else 3) if config.channels is None else config.channels
    if channels not in (1, 3):
        raise DataError(f"channels is {channels}; accepted: 1 for grey, 3 for colour")
    total = sum(len(split) for split in splits.values()) * channels * size[0] * size[1]
    ready = {
        name: ImageSplit(
            split,
            image_column,
            labels[name],
            size,
            channels,
            resize=config.size is not None,
            recolour=config.channels is not None,
            cache=not stream and total <= config.cache_gb * 2**30,
            check=not stream,
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
        config.data, **ready, size=size, channels=channels, class_names=class_names, settings=settings
    )


def parse_size(size: str) -> tuple[int, int]:
    """``"64"`` or ``"48x64"`` to (height, width)."""
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise DataError(f"size is {size!r}; accepted: a number such as 64, or HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def _three_splits(source_splits: dict[str, Dataset], config: DataConfig) -> dict[str, Dataset]:
    """Rename, and cut a missing validation or test split from the training split, always the same way."""
    for name in ("validation", "test"):
        if not 0 < getattr(config, name) < 0.5:
            raise DataError(f"{name} is {getattr(config, name)}; accepted: a share between 0 and 0.5")
    splits = {
        "validation" if name in ("val", "valid", "dev") else name: split
        for name, split in source_splits.items()
    }
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
    for name in SPLITS:
        if len(splits[name]) == 0:
            raise DataError(f"split {name} of {config.data} is empty")
        if config.limit is not None:
            # Not the first ones: many data sets are sorted by class.
            splits[name] = splits[name].select(sorted(_shuffled(splits[name], config)[: config.limit]))
    return {name: splits[name] for name in SPLITS}


def _shuffled(split: Dataset, config: DataConfig) -> list[int]:
    """The row numbers of ``split`` in an order that depends on ``split_seed`` and their number alone."""
    generator = torch.Generator().manual_seed(config.split_seed)
    order: list[int] = torch.randperm(len(split), generator=generator).tolist()
    return order


def _image_column(dataset: Dataset, config: DataConfig) -> str:
    """The column that holds the images: the one that ``config`` names, else the only one of the type."""
    import datasets

    columns = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    listing = ", ".join(dataset.column_names)
    if config.image_column is not None:
        if config.image_column not in columns:
            raise DataError(
                f"{config.data} has no image column {config.image_column!r}; its columns are {listing}, "
                f"of which {', '.join(columns) or 'none'} hold images"
            )
        return config.image_column
    if not columns:
        raise DataError(
            f"{config.data} has no column of images; its columns are {listing}; "
            f"store one with the type datasets.Image"
        )
    if len(columns) > 1:
        raise DataError(
            f"{config.data} has several image columns ({', '.join(columns)}); choose one with --image-column"
        )
    return columns[0]


def _label_column(dataset: Dataset, config: DataConfig) -> str | None:
    """The column of labels: the one that ``config`` names, else the first of ``LABEL_COLUMNS``, or None."""
    if config.label_column is not None:
        if config.label_column not in dataset.column_names:
            raise DataError(
                f"{config.data} has no column {config.label_column!r} for labels; "
                f"its columns are {', '.join(dataset.column_names)}"
            )
        return config.label_column
    return next((name for name in LABEL_COLUMNS if name in dataset.column_names), None)


def _undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The data set with its images as {"path", "bytes"}."""
    import datasets

    return dataset.cast_column(image_column, datasets.Image(decode=False))


def _labels(
    splits: dict[str, Dataset], column: str | None
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
    """Label numbers of each split and the class names, from names, numbers or strings in ``column``."""
    import datasets

    if column is None:
        return dict.fromkeys(splits), ()
    kind: Any = splits["train"].features[column]
    values = {name: list(split[column]) for name, split in splits.items()}
    remedy = "choose another with --label-column, or remove such images"
    for name, split in values.items():
        for row, value in enumerate(split):
            if value is None or not isinstance(value, Hashable):
                raise DataError(
                    f"image {row} of split {name} has the label {value!r} in column {column!r}, "
                    f"which must hold one number or name an image; {remedy}"
                )
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(kind.names)
        numbers = values
    else:
        trained = sorted(set(values["train"]))
        names = tuple(str(value) for value in trained)
        position = {value: index for index, value in enumerate(trained)}
        unknown = {value for split in values.values() for value in split} - set(trained)
        if unknown:
            raise DataError(f"label {min(unknown)!r} of column {column!r} occurs in no training image")
        numbers = {name: [position[value] for value in split] for name, split in values.items()}
    for name, split in numbers.items():
        for row, number in enumerate(split):
            if not 0 <= number < len(names):
                raise DataError(
                    f"image {row} of split {name} has label {number} in column {column!r}, "
                    f"which has {len(names)} classes, numbered from 0; {remedy}"
                )
    return {name: torch.tensor(split, dtype=torch.int64) for name, split in numbers.items()}, names


def _variance(split: ImageSplit, sample: int = 10_000) -> float:
    """Variance of the pixels of evenly spaced training images."""
    rows = torch.linspace(0, len(split) - 1, min(sample, len(split))).long()
    return max(float(to_float(split.batch(rows)).var(correction=0)), 1e-8)
