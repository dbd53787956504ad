"""Where images come from: each source gives Hugging Face datasets of encoded images, one a split."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}

KAOKORE_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
KAOKORE_LABELS = {
    "gender": ["male", "female"],
    "status": ["noble", "warrior", "incarnation", "commoner"],
}


class DataError(ValueError):
    """Data that cannot be used; the message names the file or column and what to do about it."""


def open_source(data: str, cache_dir: str | None = None) -> dict[str, Dataset]:
    """Datasets by split name. Images are left encoded (``{"path", "bytes"}``).

    data: ``digits``; a folder holding ``labels.csv`` and ``images_256/`` (KaoKore), parquet files, or
    images (in a subfolder per class, below ``train/``, ``test/`` if split); else the id of a data set
    on the Hugging Face hub, OWNER/NAME. Parquet files may lie in ``data/``, as in a snapshot of the hub.
    Raises DataError.
    """
    if data == "digits":
        return {"train": _digits()}
    if not data.strip():
        raise DataError(f"data is {data!r}; give a folder ('.' for this one), a hub id or 'digits'")
    path = Path(data).expanduser()
    if not path.exists():
        if path.is_absolute() or data.startswith((".", "~")) or data.count("/") > 1:
            raise DataError(f"{data} does not exist; give an existing folder, a hub id or 'digits'")
        if "/" not in data:  # asking the hub would take half a minute of retries
            raise DataError(
                f"there is no folder {data!r}; give an existing folder, 'digits', or the full id of a data "
                f"set on the hub, OWNER/NAME (ylecun/mnist, not mnist)"
            )
        return _hub(data, cache_dir)
    if not path.is_dir():
        raise DataError(f"{data} is a file; give the folder that holds it")
    if (path / "labels.csv").is_file():
        return _kaokore(path)
    for folder in (path, path / "data"):
        if any(folder.glob("*.parquet")):
            return _parquet(folder, cache_dir)
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*")):
        return _image_folder(path)
    raise DataError(
        f"{data} holds no images, no parquet files and no labels.csv; accepted suffixes are "
        f"{', '.join(sorted(IMAGE_SUFFIXES))} and .parquet"
    )


def location(data: str) -> str:
    """``data`` in a form that means the same from every working directory."""
    path = Path(data).expanduser()
    return str(path.resolve()) if data != "digits" and path.exists() else data


def _digits() -> Dataset:
    """The 1,797 handwritten digits inside scikit-learn: 8 x 8, 17 grey levels spread over 0..255."""
    import datasets
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = []
    for grey in (bunch.images * (255 / 16)).round().astype("uint8"):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, format="PNG")
        images.append({"path": None, "bytes": buffer.getvalue()})
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.ClassLabel(names=[str(d) for d in range(10)]),
        }
    )
    columns = {"image": images, "label": bunch.target.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


def _hub(name: str, cache_dir: str | None) -> dict[str, Dataset]:
    import datasets

    try:
        found = datasets.load_dataset(name, cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"there is no folder {name!r}, and the data set {name!r} could not be loaded from the Hugging "
            f"Face hub ({type(error).__name__}: {error}); check the name and the connection"
        ) from error
    return dict(found)


def _parquet(path: Path, cache_dir: str | None) -> dict[str, Dataset]:
    """Files named ``train*.parquet``, ``test*.parquet`` and so on; the name before ``-`` is the split."""
    import datasets

    files: dict[str, list[str]] = {}
    for file in sorted(path.glob("*.parquet")):
        files.setdefault(file.stem.split("-")[0], []).append(str(file))
    try:
        return dict(datasets.load_dataset("parquet", data_files=files, cache_dir=cache_dir))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"the parquet files of {path} could not be read ({type(cause).__name__}: {cause}); "
            f"check that each is complete and that all have the same columns"
        ) from error


def _image_folder(path: Path) -> dict[str, Dataset]:
    """``path/[train|validation|test]/[class]/image``; both levels of folders are optional.

    Without ``train/``, a folder called ``test`` is a class like the others beside it.
    """
    names = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
    names["test"] = "test"
    folders = {split: path / name for name, split in names.items() if (path / name).is_dir()}
    others = [entry for entry in path.iterdir() if entry.is_dir() and entry not in folders.values()]
    roots = folders if "train" in folders or (folders and not others) else {"train": path}
    found = {split: _files_and_classes(root) for split, root in roots.items()}
    classes = sorted({label for _, labels in found.values() for label in labels if label is not None})
    unlabelled = [
        file
        for files, labels in found.values()
        for file, label in zip(files, labels, strict=True)
        if label is None
    ]
    if classes and unlabelled:
        raise DataError(
            f"{unlabelled[0]} lies outside the class folders ({', '.join(classes[:5])}); move it into one"
        )
    if classes and "train" in found:
        trained = set(found["train"][1])
        for split, (files, labels) in found.items():
            for file, label in zip(files, labels, strict=True):
                if label not in trained:
                    raise DataError(
                        f"{file} is in {split} of class {label!r}, of which there is no training image; add "
                        f"some below {roots['train']}, or remove the class"
                    )
    return {
        split: _from_files(files, {"label": (labels, classes)} if classes else {})
        for split, (files, labels) in found.items()
    }


def _files_and_classes(root: Path) -> tuple[list[str], list[str | None]]:
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    parts = [file.relative_to(root).parts for file in files]
    return [str(file) for file in files], [part[0] if len(part) > 1 else None for part in parts]


def _kaokore(path: Path) -> dict[str, Dataset]:
    """``labels.csv`` (image, gender, status, set) beside ``images_256/``."""
    with open(path / "labels.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    wanted = ("image", *KAOKORE_LABELS, "set")
    missing = [column for column in wanted if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path / 'labels.csv'} lacks the column {missing[0]!r}; it must have {wanted}")
    for number, row in enumerate(rows, start=2):
        short = [column for column in wanted if row[column] is None]
        if short:
            raise DataError(f"{path / 'labels.csv'} line {number} ends before {short[0]!r}; complete it")
    absent = [row["image"] for row in rows if not (path / "images_256" / row["image"]).is_file()]
    if absent:
        raise DataError(
            f"{path / 'images_256' / absent[0]} is missing, as are {len(absent) - 1} other images of "
            f"labels.csv; download the images with the script of the KaoKore repository (rois-codh/kaokore)"
        )
    splits: dict[str, Dataset] = {}
    for number, row in enumerate(rows, start=2):
        for column, names in KAOKORE_LABELS.items():
            if not (row[column].isdigit() and int(row[column]) < len(names)):
                raise DataError(
                    f"{path / 'labels.csv'} line {number}: unknown {column} {row[column]!r}; "
                    f"accepted are 0 to {len(names) - 1} ({', '.join(names)})"
                )
        if row["set"] not in KAOKORE_SPLITS:
            raise DataError(
                f"{path / 'labels.csv'} line {number}: unknown set {row['set']!r}; "
                f"accepted are {', '.join(KAOKORE_SPLITS)}"
            )
    for name, split in KAOKORE_SPLITS.items():
        mine = [row for row in rows if row["set"] == name]
        labels = {
            column: ([names[int(row[column])] for row in mine], names)
            for column, names in KAOKORE_LABELS.items()
        }
        if mine:
            splits[split] = _from_files([str(path / "images_256" / row["image"]) for row in mine], labels)
    return splits


def _from_files(files: list[str], labels: Mapping[str, tuple[Sequence[str | None], list[str]]]) -> Dataset:
    import datasets

    columns: dict[str, list[object]] = {"image": [{"path": file, "bytes": None} for file in files]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    for column, (values, names) in labels.items():
        columns[column] = [names.index(value) for value in values if value is not None]
        features[column] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, features=features)
