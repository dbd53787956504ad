"""A store of extracted codes: memory-mapped Arrow files, one row an image, and the priors' view of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.codes.description import CodeDescription
from models.data.sources import DataError
from models.data.splits import SPLITS
from vq_kernels.checks import check_choice

if TYPE_CHECKING:
    from datasets import Dataset, Features

IN_MEMORY = 2**29  # bytes of codes that a split holds in memory once its first batch is read

CodeBatch = tuple[tuple[Tensor, ...], Tensor]  # codes of each level, [B, *shape] int64, top first; labels [B]


def read_shard(file: Path, rows: int, shapes: Sequence[Sequence[int]]) -> Dataset | None:
    """A file of the store, mapped into memory; None unless it is whole and in the store's form."""
    import datasets

    try:
        shard = datasets.Dataset.from_file(str(file))
    except (OSError, ValueError, TypeError):  # as Arrow has it
        return None
    return shard if len(shard) == rows and shard.features == code_features(shapes) else None


def wrong_values(shard: Dataset, description: CodeDescription) -> str:
    """What a file of the store, as :func:`read_shard` gives it, holds that is no code and no label; or ''."""
    levels = [f"level{level}" for level in range(len(description.shapes))]
    accepted = [(name, 0, sizes) for name, sizes in zip(levels, description.codebook_sizes, strict=True)]
    if description.class_names:
        accepted.append(("label", -1, (len(description.class_names),)))
    for name, low, sizes in accepted:
        for chunk in shard.data.column(name).chunks:
            flat = chunk if name == "label" else chunk.flatten()
            if flat.null_count:
                return f"{name} lacks values"
            values = flat.to_numpy(zero_copy_only=False)
            for place, size in enumerate(sizes):  # of the codes of one position
                own = values[place :: len(sizes)]
                if len(own) and (own.min() < low or own.max() >= size):
                    return (
                        f"{name} holds values from {own.min()} to {own.max()}; accepted: {low} to {size - 1}"
                    )
    return ""


def code_features(shapes: Sequence[Sequence[int]]) -> Features:
    """Columns of the store: ``level0`` (top), ``level1``, ... as flat int32 lists, and ``label``."""
    import datasets

    columns = {
        f"level{level}": datasets.List(datasets.Value("int32"), length=math.prod(shape))
        for level, shape in enumerate(shapes)
    }
    return datasets.Features(columns | {"label": datasets.Value("int64")})


class CodeSplit:
    """One split of a store; ``batch(rows)`` gives those rows as tensors.

    For example, of codes of the shapes ``((4, 4), (8, 8))`` ``split.batch(range(32))`` is a pair of tensors
    ``[32, 4, 4]`` and ``[32, 8, 8]``.

    A split of at most ``in_memory`` bytes is read once, at its first batch; of a larger one every batch
    reads just its rows from disk, which takes the milliseconds of a training step on a GPU.
    """

    def __init__(
        self, dataset: Dataset, shapes: tuple[tuple[int, ...], ...], in_memory: int = IN_MEMORY
    ) -> None:
        self.dataset, self.shapes = dataset.with_format("numpy"), shapes
        codes = len(dataset) * sum(math.prod(shape) for shape in shapes)
        self.cached = codes * torch.int32.itemsize <= in_memory

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """The codes of the given rows at every level, top first: int64 ``[B, *shape]`` each."""
        if self.cached:
            chosen = _as_tensor(rows)
            return tuple(level[chosen].long() for level in self._levels)
        columns = self.dataset[_as_tensor(rows).tolist()]
        return tuple(
            torch.as_tensor(columns[f"level{level}"]).long().view(-1, *shape)
            for level, shape in enumerate(self.shapes)
        )

    def batch_labels(self, rows: Sequence[int] | Tensor) -> Tensor:
        """The labels of the given rows, -1 where there are none: ``[B]`` int64."""
        return self._labels[_as_tensor(rows)]

    def label_counts(self, classes: int) -> Tensor:
        """How many rows have each of ``classes`` labels: ``[classes]`` int64; zeros where there are none."""
        labels = self.batch_labels(range(len(self)))
        return labels[labels >= 0].bincount(minlength=classes)

    @cached_property
    def _levels(self) -> tuple[Tensor, ...]:
        """The codes of all rows: int32 ``[N, *shape]`` each."""
        columns = self.dataset.with_format("arrow")[:]  # of a selection just its rows, unlike `data`
        return tuple(
            torch.from_numpy(columns.column(f"level{level}").combine_chunks().flatten().to_numpy().copy())
            .int()
            .view(-1, *shape)
            for level, shape in enumerate(self.shapes)
        )

    @cached_property
    def _labels(self) -> Tensor:
        """Those of all rows, ``[N]``: one by one they take as long as the codes."""
        return torch.as_tensor(self.dataset.select_columns("label")[:]["label"]).long()


class CodeStore:
    """The codes in a folder that `encode` wrote: three splits and what is said of them.

    For example, ``CodeStore("runs/digits/codes").train.batch([0, 5])`` gives the codes of two images. Raises
    ValueError, a DataError mostly, for a folder that holds no codes, or a file that is missing or damaged.

    Attributes:
        folder: where the store lies.
        description: what its codes are.
        splits: the :class:`CodeSplit` of each name.
    """

    def __init__(self, folder: str | Path) -> None:
        import datasets

        self.folder = Path(folder)
        self.description = CodeDescription.load(self.folder)
        self.splits: dict[str, CodeSplit] = {}
        self._files: dict[Path, Dataset] = {}
        for name in SPLITS:
            shards = []
            for file, rows in self.description.shards(self.folder, name).items():
                shard = read_shard(file, len(rows), self.description.shapes) if file.is_file() else None
                if shard is None:
                    state = "damaged" if file.is_file() else "missing"
                    raise DataError(f"{file} is {state}; finish it with `python -m models encode RUN`")
                shards.append(shard)
                self._files[file] = shard
            self.splits[name] = CodeSplit(datasets.concatenate_datasets(shards), self.description.shapes)

    def check_values(self) -> None:
        """DataError naming the first file with values that are no codes. Reads all of them once."""
        for file, shard in self._files.items():
            wrong = wrong_values(shard, self.description)
            if wrong:
                raise DataError(
                    f"{file} is damaged: {wrong}; write it again with `python -m models encode RUN`"
                )

    @property
    def train(self) -> CodeSplit:
        """The codes that priors learn from."""
        return self.splits["train"]

    @property
    def validation(self) -> CodeSplit:
        """The codes by which the best checkpoint of a prior is chosen."""
        return self.splits["validation"]

    @property
    def test(self) -> CodeSplit:
        """The codes that no training has seen."""
        return self.splits["test"]

    def split(self, name: str) -> CodeSplit:
        """The split called ``name``; ValueError for another name."""
        check_choice(SPLITS, split=name)
        return self.splits[name]


def _as_tensor(rows: Sequence[int] | Tensor) -> Tensor:
    return torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), dtype=torch.int64)
