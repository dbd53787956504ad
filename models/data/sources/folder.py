"""Folders of images, sounds or volumes, in a folder for each class, below a folder for each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from models.data.kinds import KINDS, Kind, kind_named
from models.data.settings import NO_LABELS, DataConfig
from models.data.sources.base import (
    DataError,
    Source,
    SourceData,
    dataset_of_files,
    folder_of,
    split_named,
)

if TYPE_CHECKING:
    from datasets import Dataset

# Folders and files that systems and tools leave, beside all whose names begin with "." or "__".
TOOL_NAMES = {"@eadir", "$recycle.bin", "lost+found", "system volume information", "thumbs.db", "desktop.ini"}


@dataclass
class _Files:
    """The files of one split, in order of their paths, and for each the name of its class or None."""

    files: list[str] = field(default_factory=list)
    classes: list[str | None] = field(default_factory=list)

    def add(self, file: Path, root: Path) -> None:
        parts = file.relative_to(root).parts
        self.files.append(str(file))
        self.classes.append(parts[0] if len(parts) > 1 else None)


class FileFolder(Source):
    """``FOLDER/[SPLIT]/[CLASS]/FILE``; both levels of folders may be left out, and links are followed.

    A folder is a split by its name, see :func:`models.data.sources.base.split_named`, where there is one for
    training or nothing but splits. Else the folders are classes, but for those called validation or test
    that hold folders of classes themselves: these are splits, and the classes beside them are for training.
    Splits within a class are refused: its test images would be trained on.

    Files of one kind, images for example, are found by their suffixes; where there are several kinds the
    setting ``kind`` chooses. Left out, and said so: names that begin with ``.`` or ``__`` and those of
    ``TOOL_NAMES``, files of another suffix, devices and links that lead to no regular file, folders without
    such a file, and what lies beside the splits.
    """

    rank: ClassVar[int] = 30

    def claims(self, data: str) -> bool:
        folder = folder_of(data)
        return folder is not None and any(
            _is_of(kind, file) for file in _walk(folder, Counter()) for kind in KINDS
        )

    def open(self, config: DataConfig) -> SourceData:
        folder = Path(config.data).expanduser()
        tools: Counter[str] = Counter()
        suffixes: Counter[str] = Counter()
        irregular: Counter[str] = Counter()
        kind = _kind_in(folder, config)
        roots, excluded = _split_roots(folder, kind)
        splits: dict[str, _Files] = {}
        empty: set[str] = set()
        for split, root in roots.items():
            _check_no_splits_within(root, excluded)
            files = splits[split] = _Files()
            for file in _walk(root, tools, excluded if root == folder else ()):
                if _is_of(kind, file):
                    files.add(file, root)
                elif not file.is_file():
                    irregular[file.name] += 1
                else:
                    suffixes[file.suffix.lower() or file.name] += 1
            folders = {entry.name for entry in _visible(root) if entry.is_dir() and entry not in excluded}
            empty |= folders - set(files.classes)
        left_out = [
            *_counted(tools, "entries of tools"),
            *_counted(irregular, "entries that are or lead to no regular file"),
            *_counted(suffixes, f"files that are no {kind.items} by their suffix"),
            *_listed(sorted(empty), f"folders without {kind.items}"),
            *_listed(_beside(folder, roots, kind), "entries beside the splits"),
        ]
        names = sorted({name for files in splits.values() for name in files.classes if name is not None})
        if config.label_column == NO_LABELS:
            names = []
        if names:
            _check_all_have_classes(splits, names)
            _check_classes_are_trained(splits, roots, kind)
        return SourceData(
            {split: _dataset(files, names, kind) for split, files in splits.items()}, tuple(left_out)
        )


def _is_of(kind: type[Kind], file: Path) -> bool:
    return kind.has_suffix(file.name) and file.is_file()


def _kind_in(folder: Path, config: DataConfig) -> type[Kind]:
    """The kind of the files below ``folder``: the one that ``config`` names, or the only one. DataError."""
    files = list(_walk(folder, Counter()))
    counts = {kind: sum(_is_of(kind, file) for file in files) for kind in KINDS}
    found = [kind for kind, count in counts.items() if count]
    if config.kind is not None:
        kind = kind_named(config.kind)
        if found and kind not in found:
            names = " or ".join(other.name for other in found)
            raise DataError(
                f"kind is {config.kind}, but {config.data} holds none; accepted: {names} (--kind)"
            )
        return kind
    if len(found) > 1:
        listing = " and ".join(f"{counts[kind]} {kind.items}" for kind in found)
        names = " or ".join(kind.name for kind in found)
        raise DataError(f"{config.data} holds {listing}; say which to take (--kind {names})")
    return found[0]


def _is_of_tools(name: str) -> bool:
    return name.startswith((".", "__")) or name.lower() in TOOL_NAMES


def _visible(folder: Path) -> list[Path]:
    """The entries of ``folder`` in order, without those of tools."""
    return sorted(entry for entry in folder.iterdir() if not _is_of_tools(entry.name))


def _walk(
    folder: Path,
    tools: Counter[str],
    excluded: Collection[Path] = (),
    above: frozenset[Path] = frozenset(),
) -> Iterator[Path]:
    """Every file below ``folder`` in order of their paths, over links to folders too.

    tools: counts the names of tools' entries, which are not entered. excluded: folders that are not entered.
    above: the folders on the way here, so that a link back to one of them is not followed for ever.
    """
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if _is_of_tools(entry.name):
            tools[entry.name] += 1
        elif not entry.is_dir():
            yield entry
        elif entry not in excluded:
            yield from _walk(entry, tools, excluded, above | {real})


def _split_roots(folder: Path, kind: type[Kind]) -> tuple[dict[str, Path], list[Path]]:
    """The folder of each split, and the folders that are no classes of the split whose folder is all."""
    roots: dict[str, Path] = {}
    others: list[Path] = []
    for entry in (entry for entry in _visible(folder) if entry.is_dir()):
        split = split_named(entry.name)
        if split is None:
            others.append(entry)
        elif split in roots:
            raise DataError(f"{roots[split]} and {entry} are both the split {split}; keep one of them")
        else:
            roots[split] = entry
    if "train" in roots or (roots and not others):
        return roots, []
    held_out = {split: root for split, root in roots.items() if _has_only_classes(root, kind)}
    return {"train": folder, **held_out}, list(held_out.values())


def _has_only_classes(root: Path, kind: type[Kind]) -> bool:
    """Whether all items below ``root`` lie in folders of their class."""
    parts = [file.relative_to(root).parts for file in _walk(root, Counter()) if _is_of(kind, file)]
    return bool(parts) and all(len(part) > 1 for part in parts)


def _beside(folder: Path, roots: dict[str, Path], kind: type[Kind]) -> list[str]:
    """The names of what lies beside the folders of the splits; nothing where the folder itself is one."""
    if folder in roots.values():
        return []
    return [
        entry.name
        for entry in _visible(folder)
        if entry not in roots.values() and (entry.is_dir() or _is_of(kind, entry))
    ]


def _counted(names: Counter[str], what: str) -> list[str]:
    """``["3 files that ... (.txt, .heic)"]``, or nothing."""
    return [f"{names.total()} {what} ({', '.join(sorted(names)[:5])})"] if names else []


def _listed(names: list[str], what: str) -> list[str]:
    """``["2 folders ... (a, b)"]``, or nothing."""
    return [f"{len(names)} {what} ({', '.join(names[:5])})"] if names else []


def _dataset(files: _Files, names: list[str], kind: type[Kind]) -> Dataset:
    """The files, with a column ``label`` where there are classes; ``names``: of all classes."""
    classes = [name for name in files.classes if name is not None]
    return dataset_of_files(files.files, {"label": (classes, names)} if names else {}, kind.name)


def _check_no_splits_within(root: Path, excluded: Collection[Path]) -> None:
    """DataError for a folder of a class that holds a split for training and another one."""
    for folder in (entry for entry in _visible(root) if entry.is_dir() and entry not in excluded):
        inner = {split_named(entry.name): entry.name for entry in _visible(folder) if entry.is_dir()}
        inner.pop(None, None)
        if "train" in inner and len(inner) > 1:
            raise DataError(
                f"{folder} holds the splits {', '.join(sorted(inner.values()))} and would be one class of "
                f"both; give {folder} itself, or put the folders of classes below those of the splits"
            )


def _check_all_have_classes(splits: dict[str, _Files], names: list[str]) -> None:
    """DataError naming the first file outside the class folders."""
    for files in splits.values():
        for file, name in zip(files.files, files.classes, strict=True):
            if name is None:
                raise DataError(
                    f"{file} lies outside the class folders ({', '.join(names[:5])}); move it into one, or "
                    f"leave labels out (--label-column none)"
                )


def _check_classes_are_trained(splits: dict[str, _Files], roots: dict[str, Path], kind: type[Kind]) -> None:
    """DataError naming the first file of a class without one for training."""
    if "train" not in splits:
        return
    trained = set(splits["train"].classes)
    for split, files in splits.items():
        for file, name in zip(files.files, files.classes, strict=True):
            if name not in trained:
                raise DataError(
                    f"{file} is in {split} of class {name!r}, of which there is no training {kind.item}; "
                    f"add some below {roots['train']}, remove the class, or leave labels out (--label-column "
                    f"none)"
                )
