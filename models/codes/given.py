"""Codes that a program has already: arrays, data sets of Hugging Face, data sets of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.codes.description import CodeDescription
from models.codes.store import CodeSplit, CodeStore
from models.data.settings import DataConfig
from models.data.sources import GIVEN, DataError
from models.data.splits import SPLITS, split_rows

if TYPE_CHECKING:
    from models.priors.base import AutoregressivePrior


class _GivenRows(CodeSplit):
    """Rows of codes in memory in the form of a split."""

    def __init__(self, levels: Sequence[Tensor], labels: Tensor) -> None:
        self.levels, self.labels, self.cached = list(levels), labels, True

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """The codes of the given rows at every level, top first: int64 ``[B, *shape]`` each."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return tuple(level[index] for level in self.levels)

    def batch_labels(self, rows: Sequence[int] | Tensor) -> Tensor:
        """The labels of the given rows, -1 where there are none: ``[B]`` int64."""
        return self.labels[torch.as_tensor(rows, dtype=torch.int64)]


class _GivenStore(CodeStore):
    def __init__(self, description: CodeDescription, splits: dict[str, CodeSplit]) -> None:
        self.folder, self.description, self.splits = Path(), description, splits
        self._files = {}


def as_code_store(codes: Any, priors: Sequence[AutoregressivePrior] = ()) -> CodeStore:
    """A store of ``codes``, split by their content as images are (:mod:`models.data.splits`).

    Args:
        codes: a CodeStore or its folder; an array or tensor of integers ``[N, *S]``, or one for each level
        in a
            mapping or ``datasets.Dataset`` with the columns ``level0`` (top), ``level1``, ... and perhaps
            ``label``; or a data set of torch, whose items are the codes ``[*S]`` of one level, or a pair of
            these and a label.
        priors: whose codebook sizes are those of the codes; without them a level has one code more than the
            highest.

    Raises DataError.
    """
    if isinstance(codes, CodeStore):
        return codes
    if isinstance(codes, str | Path):
        return CodeStore(codes)
    columns = _columns(codes)
    labels = columns.pop("label", None)
    names = [f"level{number}" for number in range(len(columns))]
    if not columns or set(columns) != set(names):
        raise DataError(
            f"codes has the columns {', '.join(columns)}; accepted: level0, level1, ... and label"
        )
    levels = [columns[name] for name in names]
    count = len(levels[0])
    for name, level in columns.items():
        if level.is_floating_point() or level.ndim < 2 or len(level) != count or (level < 0).any():
            raise DataError(
                f"{name} of codes is {level.dtype} of shape {tuple(level.shape)}; accepted: whole "
                f"numbers of at "
                f"least 0, [{count}, *S]"
            )
    labels = torch.full((count,), -1) if labels is None else labels.reshape(-1)
    if len(labels) != count:
        raise DataError(f"label of codes is of {len(labels)}; accepted: one for each of {count} maps")
    sizes = [prior.codebook_size for prior in priors] or [1 + int(level.max()) for level in levels]
    for name, level, size in zip(names, levels, sizes, strict=False):
        if int(level.max()) >= size:
            raise DataError(
                f"{name} of codes holds values up to {int(level.max())}; accepted: 0 to {size - 1}, those of "
                f"the prior's codebook_size"
            )
    rows = [torch.cat([level[row].reshape(-1) for level in levels]).numpy().tobytes() for row in range(count)]
    hashes = np.array([hashlib.sha256(row).digest() for row in rows], dtype="S32")
    chosen, _ = split_rows({"train": count}, {"train": hashes}, DataConfig(data=GIVEN))
    splits: dict[str, CodeSplit] = {}
    for name in SPLITS:
        index = torch.tensor(chosen[name][1])
        splits[name] = _GivenRows([level[index] for level in levels], labels[index])
    classes = 1 + int(labels.max()) if (labels >= 0).all() else 0
    digest = hashlib.sha256(hashes.tobytes() + labels.numpy().tobytes()).hexdigest()
    description = CodeDescription(
        tuple(tuple(level.shape[1:]) for level in levels),
        tuple((size,) for size in sizes),
        tuple(map(str, range(classes))),
        GIVEN,
        "",
        "",
        {"digest": digest},
        {name: len(split) for name, split in splits.items()},
    )
    return _GivenStore(description, splits)


def _columns(codes: Any) -> dict[str, Tensor]:
    """The codes of each level and the labels, by the names that a store has for them: int64."""
    import datasets

    if isinstance(codes, datasets.Dataset):
        codes = {name: np.asarray(codes.with_format("numpy")[name]) for name in codes.column_names}
    if isinstance(codes, np.ndarray | Tensor):
        codes = {"level0": codes}
    if not isinstance(codes, Mapping):
        if not (hasattr(codes, "__len__") and hasattr(codes, "__getitem__")):
            raise DataError(
                f"codes is a {type(codes).__name__}; accepted: a CodeStore or its folder, arrays, a "
                f"datasets.Dataset or a data set of torch"
            )
        items = [codes[row] for row in range(len(codes))]
        has_labels = isinstance(items[0], tuple | list)
        maps = [np.asarray(item[0] if has_labels else item) for item in items]
        codes = {"level0": np.stack(maps)}
        if has_labels:
            codes["label"] = np.asarray([int(item[1]) for item in items])
    tensors = {name: torch.as_tensor(values).cpu() for name, values in codes.items()}
    return {name: v if v.is_floating_point() else v.long() for name, v in tensors.items()}
