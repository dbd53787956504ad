"""Codes of a whole data set, batch by batch, into a store that an interrupted run goes on filling."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.codes.description import DESCRIPTION_FILE, CodeDescription
from models.codes.store import CodeStore, code_features, read_shard, wrong_values
from models.codes.usage import SAMPLE, say_if_collapsed
from models.data import ImageData, to_float
from models.data.augment import NOISE, AugmentSettings, augment
from models.data.images import ImageSplit, some_rows
from models.data.sources import location
from models.data.splits import SPLITS
from models.files import only_writer
from models.pretrained import evaluating, weights_hash
from models.progress import progress_bar
from vq_kernels.checks import check_integer

if TYPE_CHECKING:
    from models.autoencoders.discrete import DiscreteAutoencoder


class OtherCodesError(ValueError):
    """A folder holds codes of another model, of other data or in shards of another size."""


def encode(
    model: DiscreteAutoencoder,
    data: ImageData,
    folder: str | Path,
    *,
    source: str = "",
    batch_size: int = 256,
    shard_size: int = 16_384,
    copies: int = 1,
    augmentation: AugmentSettings | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
) -> CodeStore:
    """Write the codes and labels of every split into ``folder`` and open it.

    One batch is held in memory. A shard appears under its name when it is complete; whole shards that are
    there are not computed again, unless ``overwrite``.

    Args:
        data: images of a size that the model takes.
        source: folder of the model, which the description of the codes then names.
        batch_size, shard_size: images in a batch, and in a file.
        copies: of each training image: it as it is, and the others changed as ``augmentation`` says, at
            random but always in the same way. All images come once before any comes twice.
        device: as torch names it; the model stays there, in the mode that it was in.

    Raises:
        OtherCodesError: a ValueError, if the folder holds codes of another model, of other data or in shards
            of another size.

    For example, a VQ-VAE of downscale 4 on 28 x 28 images leaves 49 codes an image:
    ``encode(model, data, "codes").train.batch([0])[0]`` is ``[1, 7, 7]``.
    """
    check_integer(1, batch_size=batch_size, shard_size=shard_size, copies=copies)
    augmentation = AugmentSettings() if augmentation is None else augmentation
    augmentation.check_augment()
    if copies > 1 and not augmentation.augments:
        raise ValueError(
            f"copies is {copies}; accepted: 1 for images as they are, more with augmentation (--mirror, "
            f"--zoom, --shift)"
        )
    if copies > 1:
        augmentation.check_augments(data.kind)
    model.check_size(data)
    folder = Path(folder)
    shapes = model.code_shapes(data.size)
    splits = {
        name: _Copies(data.split(name), copies if name == "train" else 1, augmentation) for name in SPLITS
    }
    sizes = {name: len(split) for name, split in splits.items()}
    changes = {entry.name: getattr(augmentation, entry.name) for entry in fields(AugmentSettings)}
    made = {"copies": copies} | changes if copies > 1 else {}
    description = CodeDescription(
        shapes,
        model.codebook_sizes,
        data.class_names,
        location(data.name),
        source,
        _hash(model, source),
        data.settings | made | {"digest": data.digest()},
        sizes,
        shard_size,
    )
    if not overwrite:
        _check_resumes(description, folder)  # before anything is made
    model = model.to(device)
    with (
        evaluating(model),
        only_writer(folder),
        progress_bar(sum(sizes.values()), "encode", data.kind.item, enabled=progress) as bar,
    ):
        _say_if_collapsed(model, data.train, batch_size, device)
        if overwrite:
            _remove_codes(folder)
        _check_resumes(description, folder)
        if not (folder / DESCRIPTION_FILE).is_file():  # a store of before there was a digest stays as it is
            description.save(folder)
        for name in SPLITS:
            split = splits[name]
            (folder / name).mkdir(exist_ok=True)
            for target, rows in description.shards(folder, name).items():
                if _is_whole(target, len(rows), description):
                    bar.update(len(rows))
                else:
                    _write_shard(model, split, rows, target, shapes, batch_size, device, bar.update)
    return CodeStore(folder)


class _Copies:
    """The images of a split once as they are, then all of them changed, and so on."""

    def __init__(self, split: ImageSplit, copies: int, augmentation: AugmentSettings) -> None:
        self.split, self.copies, self.augmentation = split, copies, augmentation
        changed = (copies - 1) * len(split)
        self.noise = torch.rand(changed, NOISE, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.copies * len(self.split)

    def batch(self, rows: range, device: str) -> Tensor:
        """Images in the models' range: ``[B, C, *S]``."""
        images = to_float(self.split.batch([row % len(self.split) for row in rows]).to(device))
        first = min(max(0, len(self.split) - rows.start), len(rows))  # rows of images as they are
        if first == len(rows):
            return images
        noise = self.noise[rows.start + first - len(self.split) : rows.stop - len(self.split)].to(device)
        return torch.cat([images[:first], augment(images[first:], noise, self.augmentation)])

    def labels(self, rows: range) -> list[int]:
        numbers: list[int] = self.split.batch_labels([row % len(self.split) for row in rows]).tolist()
        return numbers


@torch.no_grad()
def _say_if_collapsed(model: DiscreteAutoencoder, split: ImageSplit, batch_size: int, device: str) -> None:
    rows = some_rows(len(split), SAMPLE)
    batches = [model.encode(to_float(split.batch(batch).to(device))) for batch in rows.split(batch_size)]
    codes = [torch.cat(level) for level in zip(*batches, strict=True)]
    say_if_collapsed(codes, model.codebook_sizes, split.kind.items)


def _is_whole(target: Path, rows: int, description: CodeDescription) -> bool:
    """Whether a file of the store is there and holds codes, so that it need not be written again."""
    shard = read_shard(target, rows, description.shapes) if target.is_file() else None
    return shard is not None and not wrong_values(shard, description)


@torch.no_grad()
def _write_shard(
    model: DiscreteAutoencoder,
    split: _Copies,
    rows: range,
    target: Path,
    shapes: Sequence[Sequence[int]],
    batch_size: int,
    device: str,
    on_encoded: Callable[[int], object],
) -> None:
    from datasets.arrow_writer import ArrowWriter

    unfinished = target.with_suffix(".unfinished")
    with ArrowWriter(path=str(unfinished), features=code_features(shapes)) as writer:
        for start in range(rows.start, rows.stop, batch_size):
            batch = range(start, min(start + batch_size, rows.stop))
            codes = model.encode(split.batch(batch, device))
            columns = {f"level{i}": level.flatten(1).int().cpu().numpy() for i, level in enumerate(codes)}
            writer.write_batch({name: list(values) for name, values in columns.items()}
                               | {"label": split.labels(batch)})  # fmt: skip
            on_encoded(len(batch))
        writer.finalize()
    os.replace(unfinished, target)


def _check_resumes(description: CodeDescription, folder: Path) -> None:
    """OtherCodesError naming the first setting of the codes in ``folder`` that is not ``description``'s."""
    remedy = "give another folder (--out), or overwrite them (--overwrite)"
    if (folder / DESCRIPTION_FILE).is_file():
        difference = CodeDescription.load(folder).difference(description)
        if difference and difference[0] == "digest":
            raise OtherCodesError(
                f"{folder} holds codes of other images or labels of {description.data}, which have changed "
                f"since; {remedy}"
            )
        if difference:
            name, stored, current = difference
            raise OtherCodesError(
                f"{folder} holds codes with {name} {stored!r}, now it is {current!r}; {remedy}"
            )
    elif any(_shards_in(folder)):
        raise OtherCodesError(f"{folder} holds codes, but no {DESCRIPTION_FILE} says of what; {remedy}")


def _remove_codes(folder: Path) -> None:
    for shard in _shards_in(folder):
        shard.unlink()
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)


def _shards_in(folder: Path) -> list[Path]:
    digits = "[0-9]" * 9
    return [shard for name in SPLITS for shard in (folder / name).glob(f"{digits}-{digits}.arrow")]


def _hash(model: torch.nn.Module, source: str) -> str:
    """The hash of the file of the model's weights, or of what that file would hold."""
    from safetensors.torch import save

    if source:
        return weights_hash(source)
    state = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
