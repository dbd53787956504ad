"""Which column of a data set holds the items and which the labels, and the labels as numbers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.errors import DataError
from models.data.kinds import KINDS, Kind, kind_named
from models.data.records import Encoded, Table
from models.data.settings import NO_LABELS, DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

ITEM_COLUMNS = ("image", "audio", "volume")
LABEL_COLUMNS = ("label", "labels", "status", "fine_label", "class", "target")


def find_item_column(dataset: Dataset, config: DataConfig) -> tuple[str, type[Kind], tuple[str, ...]]:
    """The column that holds the items, their kind, and in words which others of that kind were left out.

    It is the one that ``config`` names, else the only one, else the only one whose name is among
    ``ITEM_COLUMNS``: a volume often has its mask beside it. Tables that were not written by Hugging Face
    datasets say no more of an item than {"bytes", "path"}: of what kind these are the first of them shows.
    Raises DataError.
    """
    every = {name: kind for name in dataset.column_names if (kind := _kind_of(dataset, name)) is not None}
    wanted = None if config.kind is None else kind_named(config.kind)
    if not every:
        for kind in reversed(KINDS):  # images last: bytes say less than lists of lists
            plain = {
                name: kind
                for name, feature in dataset.features.items()
                if wanted in (None, kind) and kind.is_plain_feature(feature)
            }
            every = every | plain if config.image_column else every or plain
    columns = {name: kind for name, kind in every.items() if wanted in (None, kind)}
    items = " or ".join(kind.items for kind in KINDS) if wanted is None else wanted.items
    listing = ", ".join(dataset.column_names)
    if config.image_column is not None:
        if config.image_column not in columns:
            raise DataError(
                f"{config.data} has no column {config.image_column!r} of {items}; its columns are "
                f"{listing}, of which {', '.join(columns) or 'none'} hold such"
            )
        return config.image_column, columns[config.image_column], ()
    if not columns:
        raise DataError(
            f"{config.data} has no column of {items}; its columns are {listing}; store one with the type "
            f"datasets.Image, datasets.Audio or datasets.Array3D"
        )
    named = [name for name in columns if name.lower() in ITEM_COLUMNS] if len(columns) > 1 else list(columns)
    if len(named) != 1 or len(set(columns.values())) > 1:
        raise DataError(
            f"{config.data} has several columns of {items} ({', '.join(columns)}); choose one with "
            f"--image-column, or a kind with --kind"
        )
    kind = columns[named[0]]
    beside = [name for name in columns if name != named[0]]
    return named[0], kind, tuple(f"the {kind.items} of column {name} beside {named[0]}" for name in beside)


def _kind_of(dataset: Dataset, column: str) -> type[Kind] | None:
    """The kind of the items in ``column``; None where it holds none."""
    feature = dataset.features[column]
    for kind in KINDS:
        if kind.is_feature(feature):
            return kind
    if not (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return None
    record = dataset.with_format(None).select_columns([column])[0][column] or {"bytes": None, "path": None}
    return next(kind for kind in reversed(KINDS) if kind.is_record(record))


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


def joined_labels(dataset: Dataset, config: DataConfig, item: str, table: Table) -> Dataset:
    """The data set with one column more if ``label_column`` names several columns: their combinations.

    The classes of ``gender,status`` are ``female+noble``, ``male+warrior`` and so on, those that occur in
    training. A single column whose name has a comma is taken as it is. DataError for a column that is not
    there, and for a missing label. item, table: what one of the labelled things is called in messages, and
    where it is.
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
        feature: Any = dataset.features[column]
        is_named = isinstance(feature, datasets.ClassLabel)
        values = list(dataset[column])
        for row, value in enumerate(values):
            if value is None or (is_named and not 0 <= value < len(feature.names)):
                raise DataError(
                    f"{table.row(row, item)} has the label {value!r} in column {column!r}; remove such "
                    f"rows, or choose other columns (--label-column)"
                )
        parts.append([feature.names[value] if is_named else str(value) for value in values])
    joined = [JOINED.join(names) for names in zip(*parts, strict=True)]
    return dataset.add_column(config.label_column, joined)


def label_columns(label_column: str | None) -> list[str]:
    """The names of columns in the setting ``label_column``: one, several with commas between, or none."""
    if label_column in (None, NO_LABELS):
        return []
    return [name.strip() for name in str(label_column).split(",") if name.strip()]


def number_labels(
    splits: dict[str, Dataset], column: str | None, items: Mapping[str, Encoded], limit: int | None = None
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
    """Label numbers of each split and the class names, from names, numbers or strings in ``column``.

    items: what is labelled, in the order of the rows. limit: of how many are left in each split.
    """
    import datasets

    if column is None:
        return dict.fromkeys(splits), ()
    kind: Any = splits["train"].features[column]
    values = {name: list(split[column]) for name, split in splits.items()}
    remedy = "choose another with --label-column, leave labels out (--label-column none), or remove such rows"
    for name, split in values.items():
        for row, value in enumerate(split):
            if value is None or not isinstance(value, Hashable):
                raise DataError(
                    f"{items[name].row_name(row)} has the label {value!r} in column {column!r}, "
                    f"which must hold one number or name for each; {remedy}"
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
            item, raised = items["train"].item, "" if limit is None else "raise --limit, "
            left = "" if limit is None else f" of the {len(items['train'])} that limit {limit} leaves"
            raise DataError(
                f"label {min(unknown, key=str)!r} of column {column!r} occurs in no training {item}{left}; "
                f"{raised}{remedy}"
            )
        numbers = {name: [position[value] for value in split] for name, split in values.items()}
    for name, split in numbers.items():
        for row, number in enumerate(split):
            if not 0 <= number < len(names):
                raise DataError(
                    f"{items[name].row_name(row)} has label {number} in column {column!r}, "
                    f"which has {len(names)} classes, numbered from 0; {remedy}"
                )
    return {name: torch.tensor(split, dtype=torch.int64) for name, split in numbers.items()}, names
