"""What a source of data is: a file of this folder that says which data it claims, and opens them."""

from __future__ import annotations

import errno
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from models.data.errors import DataError
from models.data.settings import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset

_SPLIT_NAME = re.compile(
    r"(?:(?P<train>train|training)|(?P<validation>val|valid|validation|dev)|(?P<test>test|testing))"
    r"(?:[ _-]?(?:set|data|images|imgs|split))?(?:[ _-]?[0-9]+)?",
    re.IGNORECASE,
)

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class SourceData:
    """What a source opened.

    splits: data sets by the name that the source gives the split, items left encoded as {"path", "bytes"}.
    left_out: what lies there and is not among them, and why, in words.
    roots: folders in one of which files that the tables name must lie; None where the source looked for them.
    files: of the splits that are tables in parquet, their files in the order of the rows.
    """

    splits: dict[str, Dataset]
    left_out: tuple[str, ...] = ()
    roots: tuple[Path, ...] | None = None
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)


class Source(ABC):
    """One way in which data lie somewhere.

    A module of this folder defines one subclass, and that is all it takes to add a source: see
    :func:`models.data.sources.open_source`.

    rank: sources are asked in this order, lowest first, which one claims the data; a layout that is a
    special case of another has the lower rank.
    """

    rank: ClassVar[int]

    @abstractmethod
    def claims(self, data: str) -> bool:
        """Whether the setting ``data`` names data of this source. Reads no image and asks no server."""

    def has_subsets(self, data: str) -> bool:
        """Whether the setting ``subset`` says which part of ``data``, which this source claims, to open."""
        return False

    @abstractmethod
    def open(self, config: DataConfig) -> SourceData:
        """The data sets that ``config.data`` names. Raises DataError."""


def check_cache(error: BaseException, cache_dir: str | None) -> None:
    """DataError naming the folder of converted data if ``error`` says that it cannot be written.

    Converting is all that writes, so that a full disk or a quota is never a fault of the data themselves.
    """
    import datasets

    place = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
    reason = None
    cause: BaseException | None = error
    while cause is not None and reason is None:
        reason = cause.strerror if isinstance(cause, OSError) and cause.errno in _CANNOT_WRITE else None
        if str(cause).startswith("Not enough disk space"):  # as datasets says, before it begins
            reason = str(cause)
        cause = cause.__cause__ or cause.__context__
    if reason is None:
        try:  # what it is, or who may write there, shows when it is tried
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return
        except OSError as unwritable:
            reason = "it is a file" if place.is_file() else unwritable.strerror or str(unwritable)
    raise DataError(
        f"{place}, where data are kept in converted form, cannot be written ({reason}); make room "
        f"there, or give another folder (--cache-dir)"
    ) from error


def split_named(name: str) -> str | None:
    """Which split a folder or file called ``name`` holds: train, validation, test, or None.

    Names that data sets use for the same split are taken for one, in capitals or not: training, Test,
    valid, dev, test_images, train2017.
    """
    match = _SPLIT_NAME.fullmatch(name)
    return match.lastgroup if match else None


def folder_of(data: str) -> Path | None:
    """The folder that ``data`` names, or None."""
    path = Path(data).expanduser()
    return path if data.strip() and path.is_dir() else None


def dataset_of_files(
    files: Sequence[str], labels: Mapping[str, tuple[Sequence[str], Sequence[str]]], column: str = "image"
) -> Dataset:
    """A data set with a column of files, by default of images, and one column for each entry of ``labels``.

    labels: for each column the class of every file, and the names of all classes in the order of their
    numbers.
    """
    import datasets

    columns: dict[str, list[object]] = {column: [{"path": file, "bytes": None} for file in files]}
    plain = {"path": datasets.Value("string"), "bytes": datasets.Value("binary")}
    features = datasets.Features({column: datasets.Image(decode=False) if column == "image" else plain})
    for label, (values, names) in labels.items():
        number = {name: index for index, name in enumerate(names)}
        columns[label] = [number[value] for value in values]
        features[label] = datasets.ClassLabel(names=list(names))
    return datasets.Dataset.from_dict(columns, features=features)
