"""Codes of a whole data set, batch by batch, into a store that an interrupted run goes on filling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.build import check_size
from models.data import ImageData, to_float
from models.data.codes import CodeDescription, CodeStore, code_features
from models.data.images import SPLITS, ImageSplit
from models.pretrained import WEIGHTS_FILE

if TYPE_CHECKING:
    from models.outputs import CodeModel


def encode(
    model: CodeModel,
    data: ImageData,
    folder: str | Path,
    *,
    source: str = "",
    batch_size: int = 256,
    shard_size: int = 16_384,
    device: str = "cpu",
    progress: bool = False,
) -> CodeStore:
    """Write the codes and labels of every split into ``folder`` and open it.

    One batch is held in memory. A shard appears under its name when it is complete; shards that are there
    are not computed again. Raises ValueError if the folder holds codes of another model or data set.
    """
    from tqdm import tqdm

    check_size(model, data)
    folder = Path(folder)
    shapes = model.code_shapes(data.size)
    weights = _hash(Path(source) / WEIGHTS_FILE) if source else ""
    description = CodeDescription(shapes, model.codebook_size, data.class_names, data.name, source, weights)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "codes.json").is_file() and CodeDescription.load(folder) != description:
        raise ValueError(f"{folder} holds codes of another model or data set; remove it")
    description.save(folder)
    model = model.to(device).eval()
    total = sum(len(data.split(name)) for name in SPLITS)
    with tqdm(total=total, desc="encode", unit="image", disable=not progress) as bar:
        for name in SPLITS:
            split = data.split(name)
            (folder / name).mkdir(exist_ok=True)
            for start in range(0, len(split), shard_size):
                rows = range(start, min(start + shard_size, len(split)))
                target = folder / name / f"{start:09d}-{rows.stop:09d}.arrow"
                if not target.is_file():
                    _write_shard(model, split, rows, target, shapes, batch_size, device)
                bar.update(len(rows))
    return CodeStore(folder)


@torch.no_grad()
def _write_shard(
    model: CodeModel,
    split: ImageSplit,
    rows: range,
    target: Path,
    shapes: Sequence[Sequence[int]],
    batch_size: int,
    device: str,
) -> None:
    from datasets.arrow_writer import ArrowWriter

    unfinished = target.with_suffix(".unfinished")
    with ArrowWriter(path=str(unfinished), features=code_features(shapes)) as writer:
        for start in range(rows.start, rows.stop, batch_size):
            part = range(start, min(start + batch_size, rows.stop))
            codes = model.encode(to_float(split.batch(part).to(device)))
            columns = {f"level{i}": level.flatten(1).int().cpu().numpy() for i, level in enumerate(codes)}
            writer.write_batch({name: list(values) for name, values in columns.items()}
                               | {"label": split.batch_labels(part).tolist()})  # fmt: skip
        writer.finalize()
    os.replace(unfinished, target)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
