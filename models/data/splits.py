"""Which images train, validate and test: by their content, so that adding one moves no other.

The rule: an image's number is the first eight bytes of the SHA-256 of ``SPLIT_SEED:HASH``, over 2^64, where
HASH is the SHA-256 of the bytes of its file in hexadecimal. Of the training images of data without a test
split those below ``test`` are set aside for it, of data without a validation split those from there to
``validation`` more; a split that no image would fall into takes the lowest numbers of what is left. ``limit``
takes the lowest numbers of each split. Equal files have equal numbers, and so fall into one split.

With ``split_by`` "number", as runs have it that were made before there was this rule, the row numbers are
shuffled instead, in an order that depends on ``split_seed`` and their number alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.data.errors import DataError
from models.data.records import Encoded
from models.data.settings import DataConfig
from models.data.sources import split_named

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def named_splits(
    source_splits: Mapping[str, Dataset], config: DataConfig
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits of a source by the names used here, train among them, and what is none, in words."""
    splits: dict[str, Dataset] = {}
    left_out: list[str] = []
    for source_name, split in source_splits.items():
        name = split_named(source_name) or ""
        if not name:
            left_out.append(f"the split {source_name} of {len(split)} rows")
        elif name in splits:
            raise DataError(
                f"{config.data} has the split {name} twice, also as {source_name}; keep one of them"
            )
        else:
            splits[name] = split
    if "train" not in splits:
        raise DataError(f"{config.data} has the splits {', '.join(source_splits)}; one must be called train")
    for name, split in splits.items():
        if len(split) == 0:
            raise DataError(f"split {name} of {config.data} is empty")
    return splits, left_out


def content_hashes(items: Encoded, on_read: Callable[[int], object]) -> NDArray[np.bytes_]:
    """The SHA-256 of each item's encoded bytes: ``[N]``. DataError for one that cannot be read."""
    hashes = np.empty(len(items), dtype="S32")
    for rows in items.chunks():
        hashes[rows.start : rows.stop] = items.map(lambda encoded, _: hashlib.sha256(encoded).digest(), rows)
        on_read(len(rows))
    return hashes


def split_rows(
    sizes: Mapping[str, int],
    hashes: Mapping[str, NDArray[np.bytes_]] | None,
    config: DataConfig,
    items: str = "images",
) -> tuple[dict[str, tuple[str, list[int]]], int]:
    """For each split whence it is taken and which rows of that, ascending; and how many ``limit`` leaves out.

    sizes: images of each split that the data have. hashes: of their images, for ``split_by`` "content".
    items: what they are called in a message. Raises DataError where there are too few to set some aside.
    """
    for name in ("validation", "test"):
        if not 0 < getattr(config, name) < 0.5:
            raise DataError(f"{name} is {getattr(config, name)}; accepted: a share between 0 and 0.5")
    missing = [name for name in ("test", "validation") if name not in sizes]
    shares = {name: float(getattr(config, name)) for name in missing}
    if hashes is None:
        taken = _cut_by_number(sizes["train"], shares, config)
    else:
        numbers = {name: _numbers(values, config.split_seed) for name, values in hashes.items()}
        taken = _cut_by_content(numbers["train"], shares)
    if not all(map(len, taken.values())):
        images = sizes["train"] if hashes is None else len(np.unique(hashes["train"]))
        different = "" if images == sizes["train"] else "different "
        raise DataError(f"{config.data} has only {images} {different}training {items}, too few to split")
    whole = {name: (name, list(range(size))) for name, size in sizes.items()}
    rows = whole | {name: ("train", chosen) for name, chosen in taken.items()}
    beyond = 0
    for name, (source, chosen) in rows.items():
        if config.limit is None or len(chosen) <= config.limit:
            continue
        if hashes is None:
            order = _shuffled(len(chosen), config.split_seed)
        else:
            order = np.argsort(numbers[source][chosen], kind="stable").tolist()
        beyond += len(chosen) - config.limit
        rows[name] = source, sorted(chosen[place] for place in order[: config.limit])
    return {name: rows[name] for name in SPLITS}, beyond


def _cut_by_content(numbers: NDArray[np.uint64], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """The rows of the training images that are for each split, those in ``shares`` and train itself."""
    left = np.ones(len(numbers), dtype=bool)
    taken: dict[str, list[int]] = {}
    below = 0.0
    for name, share in shares.items():
        below += share
        mine = left & (numbers < np.uint64(below * 2**64))
        if not mine.any() and left.any():
            mine = left & (numbers == numbers[left].min())
        taken[name] = np.flatnonzero(mine).tolist()
        left &= ~mine
    return taken | {"train": np.flatnonzero(left).tolist()}


def _cut_by_number(count: int, shares: Mapping[str, float], config: DataConfig) -> dict[str, list[int]]:
    order = _shuffled(count, config.split_seed)
    taken: dict[str, list[int]] = {}
    for name, share in shares.items():
        size = round(share * count)
        taken[name], order = sorted(order[:size]), order[size:]
    return taken | {"train": sorted(order)}


def _numbers(hashes: NDArray[np.bytes_], seed: int) -> NDArray[np.uint64]:
    """The number of each image, as a multiple of 2^-64."""
    words = [
        hashlib.sha256(f"{seed}:{value.ljust(32, bytes(1)).hex()}".encode()).digest()[:8]
        for value in hashes.tolist()  # which numpy gives without trailing zeros
    ]
    return np.frombuffer(b"".join(words), dtype=">u8").astype(np.uint64)


def _shuffled(count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def repeated_images(hashes: Mapping[str, NDArray[np.bytes_]]) -> dict[tuple[str, str], int]:
    """For each two splits how many images of the second are equal to one of the first."""
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    counts = {pair: int(np.isin(hashes[pair[1]], hashes[pair[0]]).sum()) for pair in pairs}
    return {pair: count for pair, count in counts.items() if count}
