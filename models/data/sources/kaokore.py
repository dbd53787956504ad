"""KaoKore, faces from Japanese illustrations: a table of labels beside a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from models.data.settings import DataConfig
from models.data.sources.base import DataError, Source, SourceData, dataset_of_files, folder_of
from models.data.sources.tables import read_table

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
LABELS = {
    "gender": ["male", "female"],
    "status": ["noble", "warrior", "incarnation", "commoner"],
}


class KaoKore(Source):
    """A folder with ``labels.csv`` (columns image, gender, status, set) beside ``images_256/``."""

    rank: ClassVar[int] = 10

    def claims(self, data: str) -> bool:
        folder = folder_of(data)
        return folder is not None and (folder / "labels.csv").is_file()

    def open(self, config: DataConfig) -> SourceData:
        folder = Path(config.data).expanduser()
        rows = _read_rows(folder / "labels.csv")
        images = folder / "images_256"
        absent = [row["image"] for row in rows if not (images / row["image"]).is_file()]
        if absent:
            raise DataError(
                f"{images / absent[0]} is missing, as are {len(absent) - 1} other images of labels.csv; "
                f"download the images with the script of the KaoKore repository (rois-codh/kaokore)"
            )
        splits: dict[str, Dataset] = {}
        for name, split in SPLITS.items():
            members = [row for row in rows if row["set"] == name]
            labels = {
                column: ([names[int(row[column])] for row in members], names)
                for column, names in LABELS.items()
            }
            if members:
                splits[split] = dataset_of_files([str(images / row["image"]) for row in members], labels)
        return SourceData(splits)


def _read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of ``labels.csv``; DataError naming the line and column of the first wrong entry."""
    columns, rows = read_table(table)
    required = ("image", *LABELS, "set")
    missing = [column for column in required if column not in columns]
    if missing:
        raise DataError(f"{table} lacks the column {missing[0]!r}; it must have {', '.join(required)}")
    complete: list[dict[str, str]] = []
    for line, row in rows:
        cells = {column: cell for column in required if (cell := row[column]) is not None}
        short = [column for column in required if column not in cells]
        if short:
            raise DataError(f"{table} line {line} ends before {short[0]!r}; complete it")
        for column, names in LABELS.items():
            if not (cells[column].isdecimal() and int(cells[column]) < len(names)):
                listing = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
                raise DataError(f"{table} line {line}: {column} is {cells[column]!r}; accepted: {listing}")
        if Path(cells["image"]).name != cells["image"]:
            raise DataError(f"{table} line {line}: image is {cells['image']!r}; accepted: the name of a file")
        if cells["set"] not in SPLITS:
            raise DataError(f"{table} line {line}: set is {cells['set']!r}; accepted: {', '.join(SPLITS)}")
        complete.append(cells)
    return complete
