"""Which column of a data set holds the images and which the labels, and the labels as numbers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.settings import NO_LABELS, DataConfig
from models.data.sources import DataError

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_COLUMNS = ("label", "labels", "status", "fine_label", "class", "target")


def with_image_type(dataset: Dataset) -> Dataset:
    """The data set with columns of {"bytes", "path"} as images, where its schema does not call them so.

    Tables that were not written by Hugging Face datasets say no more of an image than this form.
    """
    import datasets

    for name, kind in dataset.features.items():
        if isinstance(kind, dict) and set(kind) == {"bytes", "path"}:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def find_image_column(dataset: Dataset, config: DataConfig) -> str:
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


def find_label_column(dataset: Dataset, config: DataConfig) -> str | None:
    """The column of labels: the one that ``config`` names, else the first of ``LABEL_COLUMNS``, or None."""
    if config.label_column == NO_LABELS:
        return None
    if config.label_column is not None:
        if config.label_column not in dataset.column_names:
            raise DataError(
                f"{config.data} has no column {config.label_column!r} for labels; "
                f"its columns are {', '.join(dataset.column_names)}"
            )
        return config.label_column
    return next((name for name in LABEL_COLUMNS if name in dataset.column_names), None)


JOINED = "+"  # between the parts of the name of a class that combines the labels of several columns


def joined_labels(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set with one column more if ``label_column`` names several columns: their combinations.

    The classes of ``gender,status`` are ``female+noble``, ``male+warrior`` and so on, those that occur in
    training. A single column whose name has a comma is taken as it is. DataError for a column that is not
    there.
    """
    import datasets

    columns = label_columns(config.label_column)
    if len(columns) < 2 or config.label_column in dataset.column_names:
        return dataset
    parts: list[list[str]] = []
    for column in columns:
        if column not in dataset.column_names:
            raise DataError(
                f"{config.data} has no column {column!r} for labels; "
                f"its columns are {', '.join(dataset.column_names)}"
            )
        kind: Any = dataset.features[column]
        values = list(dataset[column])
        for row, value in enumerate(values):
            if value is None or (isinstance(kind, datasets.ClassLabel) and not 0 <= value < len(kind.names)):
                raise DataError(
                    f"image {row} has the label {value!r} in column {column!r}; remove such images, or "
                    f"choose other columns (--label-column)"
                )
        is_named = isinstance(kind, datasets.ClassLabel)
        parts.append([kind.names[value] if is_named else str(value) for value in values])
    joined = [JOINED.join(names) for names in zip(*parts, strict=True)]
    return dataset.add_column(config.label_column, joined)


def label_columns(label_column: str | None) -> list[str]:
    """The names of columns in the setting ``label_column``: one, several with commas between, or none."""
    if label_column in (None, NO_LABELS):
        return []
    return [name.strip() for name in str(label_column).split(",") if name.strip()]


def undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The data set with its images as {"path", "bytes"}."""
    import datasets

    return dataset.cast_column(image_column, datasets.Image(decode=False))


def number_labels(
    splits: dict[str, Dataset], column: str | None
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
    """Label numbers of each split and the class names, from names, numbers or strings in ``column``."""
    import datasets

    if column is None:
        return dict.fromkeys(splits), ()
    kind: Any = splits["train"].features[column]
    values = {name: list(split[column]) for name, split in splits.items()}
    remedy = (
        "choose another with --label-column, leave labels out (--label-column none), or remove such images"
    )
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
            raise DataError(
                f"label {min(unknown, key=str)!r} of column {column!r} occurs in no training image; {remedy}"
            )
        numbers = {name: [position[value] for value in split] for name, split in values.items()}
    for name, split in numbers.items():
        for row, number in enumerate(split):
            if not 0 <= number < len(names):
                raise DataError(
                    f"image {row} of split {name} has label {number} in column {column!r}, "
                    f"which has {len(names)} classes, numbered from 0; {remedy}"
                )
    return {name: torch.tensor(split, dtype=torch.int64) for name, split in numbers.items()}, names
