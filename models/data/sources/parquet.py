"""Folders of parquet files, as in a snapshot of a data set of the hub."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from models.data.settings import DataConfig
from models.data.sources.base import (
    DataError,
    Source,
    SourceData,
    check_cache,
    folder_of,
    split_named,
)


class Parquet(Source):
    """A folder with ``train*.parquet``, ``test*.parquet`` and so on, or with such files in ``data/``.

    The part of a file's name before ``-`` is its split. Also ``SPLIT/*.parquet`` and
    ``SUBSET/SPLIT/*.parquet``, as the hub's converter lays them out; of several subsets the setting
    ``subset`` chooses one. Images are bytes in the tables, or files inside the folder.
    """

    rank: ClassVar[int] = 20

    def claims(self, data: str) -> bool:
        folder = folder_of(data)
        return folder is not None and bool(_flat_files(folder) or _files_by_subset(folder))

    def has_subsets(self, data: str) -> bool:
        return not _flat_files(Path(data).expanduser())

    def open(self, config: DataConfig) -> SourceData:
        import datasets

        folder = Path(config.data).expanduser()
        files = _flat_files(folder) or _subset_files(folder, config.subset)
        try:
            readable = {
                split: [_without_pattern(file, config.cache_dir) for file in paths]
                for split, paths in files.items()
            }
            splits = datasets.load_dataset("parquet", data_files=readable, cache_dir=config.cache_dir)
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            check_cache(error, config.cache_dir)
            for file in (file for paths in files.values() for file in paths):
                if _is_empty(file):
                    raise DataError(f"{file} is a table of 0 rows; remove it, or write it again") from error
            cause = error.__cause__ or error
            raise DataError(
                f"the parquet files of {folder} could not be read ({type(cause).__name__}: {cause}); "
                f"check that each is complete and that all have the same columns"
            ) from error
        return SourceData(dict(splits), roots=(folder,), files=files)


def _flat_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files in ``folder``, or else in its ``data/``, by split."""
    for place in (folder, folder / "data"):
        files = sorted(place.glob("*.parquet"))
        if files:
            return _by_split((file.stem.split("-")[0], file) for file in files)
    return {}


def _files_by_subset(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The parquet files below ``folder`` by subset and split; the subset of ``SPLIT/*.parquet`` is ''."""
    subsets: dict[str, list[tuple[str, Path]]] = {}
    for file in sorted((*folder.glob("*/*.parquet"), *folder.glob("*/*/*.parquet"))):
        *subset, split, _ = file.relative_to(folder).parts
        split = split.removeprefix("partial-")
        if split_named(split):
            subsets.setdefault("/".join(subset), []).append((split, file))
    return {subset: _by_split(files) for subset, files in subsets.items()}


def _by_split(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for name, file in files:
        splits.setdefault(split_named(name) or name, []).append(file)
    return splits


def _subset_files(folder: Path, subset: str | None) -> dict[str, list[Path]]:
    """The files of the subset asked for, or of the only one; DataError listing the subsets."""
    subsets = _files_by_subset(folder)
    if subset is None and len(subsets) == 1:
        return next(iter(subsets.values()))
    if subset not in subsets:
        raise DataError(f"subset of {folder} is {subset}; accepted: {', '.join(sorted(subsets))} (--subset)")
    return subsets[subset]


def _is_empty(file: Path) -> bool:
    """Whether a file is whole and has no rows, which datasets cannot read."""
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows) == 0
    except (OSError, ValueError):  # as Arrow has it
        return False


def _without_pattern(file: Path, cache_dir: str | None) -> str:
    """The path in a form that ``load_dataset``, which takes patterns and chains of URLs, reads as this path.

    ``::`` cannot be escaped: the file is reached over a link in the cache then, always the same one.
    """
    import datasets

    path = file.absolute()
    if "::" in str(path):
        links = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "links"
        link = links / hashlib.sha256(str(path.parent).encode()).hexdigest()[:16]
        links.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.parent, target_is_directory=True)
        path = link / path.name
    return glob.escape(str(path))
