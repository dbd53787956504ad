"""A store of extracted codes: memory-mapped Arrow files, one row an image, and the priors' view of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.data.images import SPLITS
from models.data.sources import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

CodeBatch = tuple[tuple[Tensor, ...], Tensor]  # codes [B, *S_level] int64, top first; labels [B]
DESCRIPTION_FILE = "codes.json"


@dataclass(frozen=True)
class CodeDescription:
    """What a store holds. ``model`` is the folder of the model and ``weights`` the hash of its weights."""

    shapes: tuple[tuple[int, ...], ...]  # code map of each level, top first
    codebook_size: int
    class_names: tuple[str, ...]
    data: str
    model: str
    weights: str

    def save(self, folder: Path) -> None:
        (folder / DESCRIPTION_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> CodeDescription:
        """Raises DataError if ``folder`` is no store of codes."""
        if not (folder / DESCRIPTION_FILE).is_file():
            raise DataError(f"{folder} holds no codes; write them with `python -m models encode RUN`")
        values = json.loads((folder / DESCRIPTION_FILE).read_text())
        values["shapes"] = tuple(tuple(shape) for shape in values["shapes"])
        values["class_names"] = tuple(values["class_names"])
        return cls(**values)


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
            files = sorted((self.folder / name).glob("*.arrow"))
            if not files:
                raise DataError(f"{self.folder / name} is empty; finish it with `python -m models encode`")
            parts = [datasets.Dataset.from_file(str(file)) for file in files]
            whole = datasets.concatenate_datasets(parts)
            self.splits[name] = CodeSplit(whole, self.description.shapes)

    def split(self, name: str) -> CodeSplit:
        return self.splits[name]


def _as_list(rows: Sequence[int] | Tensor) -> list[int]:
    found: list[int] = rows.tolist() if isinstance(rows, Tensor) else list(rows)
    return found
