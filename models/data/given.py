"""Images, sounds or volumes that a program has already, as arrays or data sets of Hugging Face or torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.errors import DataError
from models.data.images import ImageSplit
from models.data.kinds import Images, Kind, kind_named
from models.data.load import ImageData, data_from, load_data
from models.data.settings import DataConfig, check_data
from models.data.sources import GIVEN, SourceData
from models.data.splits import named_splits, split_rows


class _Images(Protocol):
    """What is done with items in any container: one row at a time, levels ``[C, *S]`` and the label or -1."""

    kind: type[Kind]
    is_cached: bool

    def __len__(self) -> int: ...

    def item(self, row: int) -> tuple[NDArray[np.integer], int]: ...


class _Arrays:
    is_cached = True

    def __init__(self, images: Any, labels: Any, kind: type[Kind]) -> None:
        self.kind = kind
        self.images = images if isinstance(images, np.ndarray) else torch.as_tensor(images).cpu().numpy()
        if kind is Images and self.images.ndim not in (3, 4):
            raise DataError(f"data is of shape {self.images.shape}; accepted: [N, H, W] or [N, C, H, W]")
        self.labels = None if labels is None else np.asarray(labels).reshape(-1)
        if self.labels is not None and len(self.labels) != len(self.images):
            raise DataError(
                f"labels is of {len(self.labels)}; accepted: one for each of {len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.images)

    def item(self, row: int) -> tuple[NDArray[np.integer], int]:
        return self.kind.from_array(self.images[row], row), -1 if self.labels is None else int(
            self.labels[row]
        )


class _Items:
    """A data set of torch: ``dataset[row]`` is an image, or an image and a label."""

    is_cached = False

    def __init__(self, dataset: Any, kind: type[Kind]) -> None:
        self.dataset, self.kind = dataset, kind

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, row: int) -> tuple[NDArray[np.integer], int]:
        item = self.dataset[row]
        image, label = (item[0], int(item[1])) if isinstance(item, tuple | list) else (item, -1)
        array = image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image)
        return self.kind.from_array(array, row), label


class GivenSplit(ImageSplit):
    """Rows of given images in the form of a split."""

    def __init__(self, images: _Images, rows: Sequence[int], kind: Kind, **given: Any) -> None:
        self._images, self._rows, self.kind = images, list(rows), kind
        self.labels: Tensor | None = given["labels"]
        self.hashes: NDArray[np.bytes_] = given["hashes"]
        self._histogram = None

    @property
    def cached(self) -> bool:
        """Whether the images are in memory."""
        return self._images.is_cached

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Items of the given rows: levels ``[B, C, *S]``, of images uint8."""
        chosen = [self._rows[int(row)] for row in rows]
        shape = (0, self.channels, *self.size)
        images = [self._images.item(row)[0] for row in chosen]
        return torch.from_numpy(np.stack(images)) if images else torch.empty(shape, dtype=self.kind.dtype)


def as_image_data(data: Any, config: DataConfig) -> ImageData:
    """Splits of ``data``, by the rule of :mod:`models.data.splits` where it comes without.

    Args:
        data: an ImageData; arrays or tensors of bytes ``[N, H, W]`` or ``[N, C, H, W]``, or a pair of these
            and labels ``[N]``; a ``datasets.Dataset`` with a column of images; a data set of torch, whose
            items are such an image, a PIL image, or a pair of one and a label; or any of these by the name
            of the split. With the setting ``kind`` "audio" sounds of int16 ``[N, T]`` or ``[N, C, T]``, whose
            ``rate`` is a setting too, and with "volume" volumes of bytes ``[N, D, H, W]`` in their place.
        config: kind, shares, limit and seed of the splits, and for a ``datasets.Dataset`` all else.

    Raises DataError.
    """
    import datasets

    if isinstance(data, ImageData):
        return data
    by_name: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {"train": data}
    if all(isinstance(part, datasets.Dataset) for part in by_name.values()):
        return data_from(SourceData(by_name), config)
    check_data(config)
    kind = Images if config.kind is None else kind_named(config.kind)
    if config.crop is not None or config.orient:
        name = "orient" if config.crop is None else "crop"
        raise DataError(
            f"{name} is {getattr(config, name)}; accepted for {kind.items} given as arrays: none, as they "
            f"are taken as they are"
        )
    named, left_out = named_splits({name: _wrap(part, kind) for name, part in by_name.items()}, config)
    hashes, labels = {}, {}
    shape = named["train"].item(0)[0].shape
    for name, images in named.items():
        hashes[name], labels[name] = _read(images, shape, name)
    sizes = {name: len(images) for name, images in named.items()}
    rows, beyond = split_rows(sizes, hashes if config.split_by == "content" else None, config, kind.items)
    if beyond:
        left_out.append(f"{beyond} {kind.items} beyond the limit of {config.limit} a split")
    has_labels = all((values >= 0).all() for values in labels.values())
    classes = 1 + max(int(values.max()) for values in labels.values()) if has_labels else 0
    form = kind.of_arrays(shape, config)
    splits = {
        name: GivenSplit(
            named[origin],
            chosen,
            form,
            hashes=hashes[origin][chosen],
            labels=torch.from_numpy(labels[origin][chosen]) if has_labels else None,
        )
        for name, (origin, chosen) in rows.items()
    }
    settings = form.settings() | {"split_by": config.split_by}
    settings |= {name: getattr(config, name) for name in ("validation", "test", "limit", "split_seed")}
    return ImageData(
        GIVEN,
        splits["train"],
        splits["validation"],
        splits["test"],
        kind=form,
        class_names=tuple(map(str, range(classes))),
        settings=settings,
        left_out=tuple(left_out),
    )


def load_or_take(data: Any, config: DataConfig, *, progress: bool) -> ImageData:
    """The images that ``config`` names, or those that were given."""
    return load_data(config, progress=progress) if data is None else as_image_data(data, config)


def _wrap(part: Any, kind: type[Kind]) -> Any:
    if isinstance(part, np.ndarray | Tensor):
        return _Arrays(part, None, kind)
    if (
        isinstance(part, tuple)
        and len(part) == 2
        and all(isinstance(p, np.ndarray | Tensor | list) for p in part)
    ):
        return _Arrays(*part, kind)
    if hasattr(part, "__len__") and hasattr(part, "__getitem__"):
        return _Items(part, kind)
    raise DataError(
        f"data is a {type(part).__name__}; accepted: arrays of bytes, a datasets.Dataset or a data "
        f"set of torch "
        f"with a length"
    )


def _read(images: _Images, shape: tuple[int, ...], name: str) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """The hash of each image's pixels, and its label or -1. DataError for an image of another shape."""
    hashes = np.empty(len(images), dtype="S32")
    labels = np.empty(len(images), dtype=np.int64)
    for row in range(len(images)):
        pixels, labels[row] = images.item(row)
        if pixels.shape != shape:
            raise DataError(
                f"{images.kind.item} {row} of {name} is of shape {pixels.shape}; accepted: {shape}, as the "
                f"first"
            )
        hashes[row] = hashlib.sha256(pixels.tobytes()).digest()
    return hashes, labels
