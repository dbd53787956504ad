"""From a source to three splits of equal form: which images, of what size, with which labels."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.cache import WORTH_KEEPING, DecodedCache
from models.data.columns import find_item_column, find_label_column, joined_labels, number_labels
from models.data.errors import DataError
from models.data.images import ImageSplit, some_rows
from models.data.kinds import Kind
from models.data.orientation import principal_axis
from models.data.records import Encoded, Table
from models.data.settings import DataConfig, check_data
from models.data.sources import SourceData, location, open_source, split_named
from models.data.splits import SPLITS, content_hashes, named_splits, repeated_images, split_rows
from models.progress import library_bars, progress_bar
from vq_kernels.checks import check_choice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLED = 10_000  # of more items some that are evenly spread stand for all


@dataclass(frozen=True)
class ImageData:
    """The three splits and what is true of all of them.

    ``load_data(DataConfig(data="digits"))`` has 1,250 images to train on, 179 for validation and 368 for the
    test, a ``size`` of (8, 8), one channel and the class names "0" to "9".

    kind: the kind and form of all items. The name of this class is from when there were images alone.
    class_names: name of each label; empty for data without labels.
    settings: what, besides ``name``, says which images the splits hold and in what form.
    known_variance: ``variance``, if it has been computed before.
    left_out: what the source holds beside these images, and why it is not among them, in words.
    adapted: what was done to some of the items for all of them to have one form, in words.
    """

    name: str
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    kind: Kind
    class_names: tuple[str, ...]
    settings: dict[str, Any]
    left_out: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    known_variance: float | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Of every item: (height, width) of images."""
        return self.kind.size

    @property
    def channels(self) -> int:
        """Of every item: 1 of grey images, 3 of coloured ones."""
        return self.kind.channels

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
        items = self.kind.items
        line = f"{self.name}: {sizes} {items} of {self.kind.describe()}; {self._describe_classes()}"
        line += "".join(f"; {action}" for action in self.adapted)
        pairs = repeated_images({name: self.split(name).hashes for name in SPLITS})
        repeated = [f"{count} of {second} are in {first} too" for (first, second), count in pairs.items()]
        line += f"; equal {items} in two splits: {', '.join(repeated)}" if repeated else ""
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
        """Of all training pixels, or samples, in the models' range: squared errors are normalised by it.

        Of data split by number it is, as it was before, that of at most 10,000 images.
        """
        if self.known_variance is not None:
            return self.known_variance
        if "split_by" in self.settings or len(self.train) <= SAMPLED:
            return _variance(self.train.histogram())
        rows = torch.linspace(0, len(self.train) - 1, SAMPLED).long()
        return _variance(self.train.histogram(rows.tolist()))

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
    with library_bars(enabled=progress):
        return data_from(open_source(config), config, stream=stream, progress=progress)


def data_from(
    source: SourceData, config: DataConfig, *, stream: bool = False, progress: bool = False
) -> ImageData:
    """What :func:`load_data` does, with data that are open already."""
    check_data(config)
    if config.limit is not None and config.limit < 1:
        raise DataError(f"limit is {config.limit}; accepted: an integer of at least 1, none for all images")
    named, left_out = named_splits(source.splits, config)
    column, kind, beside = find_item_column(named["train"], config)
    kind.check_settings(config)
    files = {split_named(split): paths for split, paths in source.files.items()}
    tables = {name: Table(f"split {name} of {config.data}", files.get(name, ())) for name in named}
    named = {name: joined_labels(split, config, kind.item, tables[name]) for name, split in named.items()}
    label_column = find_label_column(named["train"], config)
    for name, split in named.items():
        for required in (column, label_column):
            if required is not None and required not in split.column_names:
                raise DataError(f"split {name} of {config.data} lacks the column {required!r}, train has it")
    items = {
        name: Encoded(
            kind.undecoded(split, column), column, kind.item, kind.at_once, source.roots, tables[name]
        )
        for name, split in named.items()
    }
    sizes = {name: len(split) for name, split in named.items()}
    with progress_bar(sum(sizes.values()), "read", kind.item, enabled=progress) as bar:

        def hashes_of(encoded: dict[str, Encoded]) -> dict[str, NDArray[np.bytes_]]:
            return {name: content_hashes(split, bar.update) for name, split in encoded.items()}

        by_content = config.split_by == "content"
        all_hashes = hashes_of(items) if by_content else None
        rows, beyond = split_rows(sizes, all_hashes, config, kind.items)
        splits = {name: items[origin].select(chosen) for name, (origin, chosen) in rows.items()}
        if all_hashes is None:
            hashes = hashes_of(splits)
        else:
            hashes = {name: all_hashes[origin][chosen] for name, (origin, chosen) in rows.items()}
    if beyond:
        left_out.append(f"{beyond} {kind.items} beyond the limit of {config.limit} a split")
    labelled = {name: named[origin].select(chosen) for name, (origin, chosen) in rows.items()}
    labels, class_names = number_labels(labelled, label_column, splits, config.limit)
    form, adapted = kind.fitted(splits, config)
    count = sum(len(split) for split in splits.values())
    nbytes = count * form.channels * math.prod(form.size) * form.dtype.itemsize
    cache = not stream and nbytes <= config.cache_gb * 2**30
    store = None if nbytes < WORTH_KEEPING else _decoded_items(config, form)
    with progress_bar(count, "decode", kind.item, enabled=progress and not stream) as bar:
        ready = {
            name: ImageSplit(
                split,
                labels[name],
                form,
                hashes=hashes[name],
                cache=cache,
                store=store,
                check=not stream,
                on_decoded=bar.update,
            )
            for name, split in splits.items()
        }
    if config.orient:
        rows_of_axis = some_rows(len(ready["train"]), SAMPLED).split(256)
        axis = principal_axis(ready["train"].batch(some) for some in rows_of_axis)
        for split in ready.values():
            split.axis = axis
    settings = {
        **form.settings(),
        "image_column": column,
        "label_column": label_column,
        **{name: getattr(config, name) for name in ("validation", "test", "limit", "split_seed")},
    }
    settings |= {"orient": True} if config.orient else {}  # what was made before does not name it
    if by_content:  # what was made before does not say how it was split
        settings["split_by"] = config.split_by
    return ImageData(
        config.data,
        ready["train"],
        ready["validation"],
        ready["test"],
        kind=form,
        class_names=class_names,
        settings=settings,
        left_out=(*source.left_out, *left_out, *beside),
        adapted=adapted,
    )


def _decoded_items(config: DataConfig, form: Kind) -> DecodedCache:
    """Where decoded items of this form of the data lie; other settings may refuse an item of theirs."""
    import datasets

    root = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "decoded"
    shape = (form.channels, *form.size)
    return DecodedCache(root, {"data": location(config.data)} | form.decoding(), shape, form.array_dtype)


def _variance(counts: Tensor) -> float:
    """Of elements in the models' range, from how many have each level; exact to rounding."""
    levels, total, highest = counts.tolist(), int(counts.sum()), len(counts) - 1
    first = sum(level * count for level, count in enumerate(levels))
    second = sum(level * level * count for level, count in enumerate(levels))
    return max((total * second - first * first) / (total * total * highest * highest), 1e-8)
