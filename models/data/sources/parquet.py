"""Folders of parquet files, as in a snapshot of a data set of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from models.data.sources.base import DataError, Source, folder_of

if TYPE_CHECKING:
    from datasets import Dataset


class Parquet(Source):
    """A folder with ``train*.parquet``, ``test*.parquet`` and so on, or with such files in ``data/``.

    The part of a file's name before ``-`` is its split.
    """

    rank: ClassVar[int] = 20

    def claims(self, data: str) -> bool:
        return _folder_of_files(data) is not None

    def open(self, data: str, cache_dir: str | None) -> dict[str, Dataset]:
        import datasets

        folder = _folder_of_files(data)
        if folder is None:
            raise DataError(f"data is {data}; accepted: a folder of parquet files")
        files: dict[str, list[str]] = {}
        for file in sorted(folder.glob("*.parquet")):
            files.setdefault(file.stem.split("-")[0], []).append(str(file))
        try:
            return dict(datasets.load_dataset("parquet", data_files=files, cache_dir=cache_dir))
        except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
            cause = error.__cause__ or error
            raise DataError(
                f"the parquet files of {folder} could not be read ({type(cause).__name__}: {cause}); "
                f"check that each is complete and that all have the same columns"
            ) from error


def _folder_of_files(data: str) -> Path | None:
    """The folder of parquet files that ``data`` names, itself or its ``data/``; None if neither is one."""
    folder = folder_of(data)
    candidates = () if folder is None else (folder, folder / "data")
    return next((candidate for candidate in candidates if any(candidate.glob("*.parquet"))), None)
