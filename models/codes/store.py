"""A store of extracted codes: memory-mapped Arrow files, one row an image, and the priors' view of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.images import SPLITS
from models.data.sources import DataError
from models.files import read_object

if TYPE_CHECKING:
    from datasets import Dataset, Features

CodeBatch = tuple[tuple[Tensor, ...], Tensor]  # codes [B, *S_level] int64, top first; labels [B]
DESCRIPTION_FILE = "codes.json"


@dataclass(frozen=True)
class CodeDescription:
    """What a store holds: all that its codes and their order depend on.

    model: folder of the model; where it lies changes no code, so it is not compared.
    weights: hash of the model's weights.
    settings: which images the splits hold and in what form, see :class:`models.data.ImageData`.
    sizes: images of each split.
    """

    shapes: tuple[tuple[int, ...], ...]  # code map of each level, top first
    codebook_size: int
    class_names: tuple[str, ...]
    data: str
    model: str
    weights: str
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shard_size: int = 16_384

    def shards(self, folder: Path, split: str) -> dict[Path, range]:
        """The files of a split, in order, each with its rows."""
        size = self.sizes[split]
        parts = [range(i, min(i + self.shard_size, size)) for i in range(0, size, self.shard_size)]
        return {folder / split / f"{part.start:09d}-{part.stop:09d}.arrow": part for part in parts}

    def difference(self, other: CodeDescription) -> tuple[str, Any, Any] | None:
        """The first setting in which codes of both differ, its value here and there."""
        mine, theirs = self._compared(), other._compared()
        names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        return (names[0], mine.get(names[0]), theirs.get(names[0])) if names else None

    def _compared(self) -> dict[str, Any]:
        own = {key: value for key, value in asdict(self).items() if key not in ("model", "settings", "sizes")}
        return {"data": self.data} | self.settings | {f"{k} images": n for k, n in self.sizes.items()} | own

    def save(self, folder: Path) -> None:
        unfinished = folder / f"{DESCRIPTION_FILE}.unfinished"
        values = asdict(self)
        if self.model:  # relative to the store, so that it is found from anywhere and after a move of both
            values["model"] = os.path.relpath(self.model, folder)
        unfinished.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(unfinished, folder / DESCRIPTION_FILE)

    @classmethod
    def load(cls, folder: Path) -> CodeDescription:
        """Raises ValueError, a DataError mostly, if ``folder`` is no store of codes."""
        if not (folder / DESCRIPTION_FILE).is_file():
            raise DataError(f"{folder} holds no codes; write them with `python -m models encode RUN`")
        file = folder / DESCRIPTION_FILE
        remedy = "write them again with `python -m models encode RUN --overwrite`"
        values = read_object(file, remedy)
        missing = [entry.name for entry in fields(cls) if entry.name not in values]
        if missing:
            raise DataError(f"{file} does not say the {missing[0]} of its codes; {remedy}")
        for name, value in values.items():
            if name not in _FORMS:
                raise DataError(f"{file} has the unknown entry {name!r}; {remedy}")
            fits, expected = _FORMS[name]
            if not fits(value):
                raise DataError(f"{file}: {name} is {value!r}, expected {expected}; {remedy}")
        values["shapes"] = tuple(tuple(shape) for shape in values["shapes"])
        if values["model"]:
            values["model"] = os.path.normpath(folder / values["model"])
        values["class_names"] = tuple(values["class_names"])
        return cls(**values)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_size, value))


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shapes": (
        lambda v: isinstance(v, list) and len(v) > 0 and all(map(_is_shape, v)),
        "the size of each level's code map",
    ),
    "codebook_size": (_is_size, "a whole number of at least 1"),
    "class_names": (lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of names"),
    **{name: (lambda v: isinstance(v, str), "text") for name in ("data", "model", "weights")},
    "settings": (lambda v: isinstance(v, dict), "an object"),
    "sizes": (
        lambda v: isinstance(v, dict) and set(v) == set(SPLITS) and all(map(_is_size, v.values())),
        f"the number of images of {', '.join(SPLITS)}",
    ),
    "shard_size": (_is_size, "a whole number of at least 1"),
}


def read_shard(file: Path, rows: int, shapes: Sequence[Sequence[int]]) -> Dataset | None:
    """A file of the store, mapped into memory; None unless it is whole and in the store's form."""
    import datasets

    try:
        found = datasets.Dataset.from_file(str(file))
    except (OSError, ValueError, TypeError):  # as Arrow has it
        return None
    return found if len(found) == rows and found.features == code_features(shapes) else None


def code_features(shapes: Sequence[Sequence[int]]) -> Features:
    """Columns of the store: ``level0`` (top), ``level1``, ... as flat int32 lists, and ``label``."""
    import datasets

    columns = {
        f"level{level}": datasets.List(datasets.Value("int32"), length=math.prod(shape))
        for level, shape in enumerate(shapes)
    }
    return datasets.Features(columns | {"label": datasets.Value("int64")})


class CodeSplit:
    """One split of a store; ``batch(rows)`` reads just those rows from disk."""

    cached = True

    def __init__(self, dataset: Dataset, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.dataset, self.shapes = dataset.with_format("numpy"), shapes

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """Code maps of the given rows, top first: int64 ``[B, *S_level]`` each."""
        found = self.dataset[_as_list(rows)]
        return tuple(
            torch.as_tensor(found[f"level{level}"]).long().view(-1, *shape)
            for level, shape in enumerate(self.shapes)
        )

    def batch_labels(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Labels of the given rows, -1 where there are none: ``[B]`` int64."""
        return torch.as_tensor(self.dataset[_as_list(rows)]["label"]).long()


class CodeStore:
    """``store.train``, ``store.validation``, ``store.test`` and ``store.description``."""

    def __init__(self, folder: str | Path) -> None:
        import datasets

        self.folder = Path(folder)
        self.description = CodeDescription.load(self.folder)
        self.splits: dict[str, CodeSplit] = {}
        for name in SPLITS:
            parts = []
            for file, rows in self.description.shards(self.folder, name).items():
                part = read_shard(file, len(rows), self.description.shapes) if file.is_file() else None
                if part is None:
                    state = "damaged" if file.is_file() else "missing"
                    raise DataError(f"{file} is {state}; finish it with `python -m models encode RUN`")
                parts.append(part)
            whole = datasets.concatenate_datasets(parts)
            self.splits[name] = CodeSplit(whole, self.description.shapes)

    def split(self, name: str) -> CodeSplit:
        return self.splits[name]


def _as_list(rows: Sequence[int] | Tensor) -> list[int]:
    found: list[int] = rows.tolist() if isinstance(rows, Tensor) else list(rows)
    return found
