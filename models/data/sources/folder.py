"""Folders of image files, in a folder for each class, below a folder for each split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from models.data.sources.base import DataError, Source, dataset_of_files, folder_of

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class _Images:
    """The image files of one split, and for each the name of its class, None outside class folders."""

    files: list[str]
    classes: list[str | None]


class ImageFolder(Source):
    """``FOLDER/[train|validation|test]/[CLASS]/IMAGE``; both levels of folders may be left out.

    Without ``train/``, a folder called ``test`` is a class like the others beside it.
    """

    rank: ClassVar[int] = 30

    def claims(self, data: str) -> bool:
        folder = folder_of(data)
        return folder is not None and any(_is_image(file) for file in folder.rglob("*"))

    def open(self, data: str, cache_dir: str | None) -> dict[str, Dataset]:
        roots = _split_roots(Path(data).expanduser())
        splits = {split: _images_below(root) for split, root in roots.items()}
        names = sorted({name for images in splits.values() for name in images.classes if name is not None})
        if names:
            _check_all_have_classes(splits, names)
            _check_classes_are_trained(splits, roots)
        return {split: _dataset(images, names) for split, images in splits.items()}


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _split_roots(folder: Path) -> dict[str, Path]:
    """The folder of each split; the folder itself is that of ``train`` where it has no splits."""
    roots = {split: folder / name for name, split in SPLIT_FOLDERS.items() if (folder / name).is_dir()}
    others = [entry for entry in folder.iterdir() if entry.is_dir() and entry not in roots.values()]
    return roots if "train" in roots or (roots and not others) else {"train": folder}


def _images_below(root: Path) -> _Images:
    """All images below ``root``, in order of their paths; the folder below ``root`` is an image's class."""
    files = sorted(file for file in root.rglob("*") if _is_image(file))
    parts = [file.relative_to(root).parts for file in files]
    return _Images([str(file) for file in files], [part[0] if len(part) > 1 else None for part in parts])


def _dataset(images: _Images, names: list[str]) -> Dataset:
    """The images, with a column ``label`` where there are classes; ``names``: of all classes."""
    classes = [name for name in images.classes if name is not None]
    return dataset_of_files(images.files, {"label": (classes, names)} if names else {})


def _check_all_have_classes(splits: dict[str, _Images], names: list[str]) -> None:
    """DataError naming the first image outside the class folders."""
    for images in splits.values():
        for file, name in zip(images.files, images.classes, strict=True):
            if name is None:
                raise DataError(
                    f"{file} lies outside the class folders ({', '.join(names[:5])}); move it into one"
                )


def _check_classes_are_trained(splits: dict[str, _Images], roots: dict[str, Path]) -> None:
    """DataError naming the first image of a class without training images."""
    if "train" not in splits:
        return
    trained = set(splits["train"].classes)
    for split, images in splits.items():
        for file, name in zip(images.files, images.classes, strict=True):
            if name not in trained:
                raise DataError(
                    f"{file} is in {split} of class {name!r}, of which there is no training image; add some "
                    f"below {roots['train']}, or remove the class"
                )
