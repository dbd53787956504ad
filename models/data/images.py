"""One split of images: decoded, resized, cropped, and cached as uint8 when it fits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from models.data.cache import Decoded, DecodedCache
from models.data.orientation import turned
from models.data.records import image_name, naming_the_image, open_image
from models.data.sources import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from PIL.Image import Image

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def some_rows(count: int, limit: int) -> Tensor:
    """``limit`` of ``count`` row numbers, ascending, drawn at random but always the same ones.

    The first rows would not do: folders of images are sorted by class.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit].sort().values


def _nothing(count: int) -> None:
    """Told of decoded images, do nothing."""


def to_float(images: Tensor) -> Tensor:
    """uint8 levels to the models' value range: ``x / 255 - 0.5``."""
    return images.float() / 255 - 0.5


def to_uint8(x: Tensor) -> Tensor:
    """The models' value range back to uint8 levels, clamped."""
    return ((x + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)


class ImageSplit:
    """``len(split)`` images; ``split.batch(rows)`` gives ``[B, C, H, W]`` uint8, ``split.labels`` ``[N]``.

    Of the digits ``load_data(DataConfig()).test.batch([0, 5])`` is ``[2, 1, 8, 8]`` uint8, and
    ``batch_labels([0, 5])`` the two digits, ``[2]`` int64.

    hashes: ``[N]``, of each image's file, see :func:`models.data.splits.content_hashes`.
    crop: share of each side of an image that is kept, about its centre, before all else.
    axis: images are mirrored to its positive side where it is set, see :mod:`models.data.orientation`.
    roots: folders in which files that records name must lie, see :func:`models.data.records.read_encoded`.
    cache: decode all images now and keep them; else they are decoded batch by batch.
    store: keeps decoded images on disk, mapped into memory. Those that it has are not decoded again, without
        ``cache`` neither.
    check: without a cache, decode all images once, so that a bad one is found before training starts.
    resize, recolour: fit an image of another size, or a coloured one among grey ones; else it is an error.
    on_decoded: called with the number of images each time some have been decoded for the cache or the check.
    """

    axis: Tensor | None = None

    def __init__(
        self,
        dataset: Dataset,
        image_column: str,
        labels: Tensor | None,
        size: tuple[int, int],
        channels: int,
        *,
        hashes: NDArray[np.bytes_],
        roots: Sequence[Path] | None = None,
        resize: bool,
        recolour: bool,
        cache: bool,
        store: DecodedCache | None = None,
        crop: float | None = None,
        check: bool = True,
        on_decoded: Callable[[int], object] | None = None,
    ) -> None:
        self.labels = labels
        self.hashes, self._roots = hashes, roots
        self.size, self.channels, self.resize, self.recolour = size, channels, resize, recolour
        self.crop = crop
        self._encoded = dataset.with_format(None).select_columns([image_column])
        self._column = image_column
        self._decoded: Decoded | None = None
        self._histogram: Tensor | None = None
        if cache and store is not None:
            self._decoded = store.fill(hashes, self._decode, on_decoded or _nothing)
        elif cache:
            pixels = np.empty((len(dataset), channels, *size), dtype=np.uint8)
            for start in range(0, len(dataset), 1024):
                rows = range(start, min(start + 1024, len(dataset)))
                pixels[start : rows.stop] = self._decode(rows)
                if on_decoded is not None:
                    on_decoded(len(rows))
            self._decoded = Decoded.of_array(pixels)
        else:
            self._decoded = None if store is None else store.find(hashes)
            if check and self._decoded is None:
                self._check(on_decoded)

    @property
    def cached(self) -> bool:
        """Whether the decoded images are in memory."""
        return self._decoded is not None and self._decoded.in_memory

    def __len__(self) -> int:
        return len(self._encoded)

    def batch(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Images of the given rows: ``[B, C, H, W]`` uint8."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        if self._decoded is not None:
            images = torch.from_numpy(self._decoded.take(index.numpy()))
        else:
            images = torch.from_numpy(self._decode(index.tolist()))
        return images if self.axis is None else turned(images, self.axis)

    def batch_labels(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Labels of the given rows, -1 where there are none: ``[B]`` int64."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return torch.full((len(index),), -1) if self.labels is None else self.labels[index]

    def _decode(self, rows: Iterable[int]) -> NDArray[np.uint8]:
        index = list(rows)
        records = self._encoded[index][self._column]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            arrays = list(pool.map(self._pixels_of, records, index))
        if not arrays:
            return np.empty((0, self.channels, *self.size), dtype=np.uint8)
        stacked = np.stack(arrays)  # [B, H, W] or [B, H, W, C]
        return stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))

    def _pixels_of(self, record: dict[str, Any], row: int) -> NDArray[np.uint8]:
        image = open_image(record, row, self._roots)
        if self.channels == 1 and image.mode not in GREY_MODES and not self.recolour:
            raise DataError(
                f"{image_name(record, row)} is coloured (mode {image.mode}), the first image is grey; "
                f"give channels (--channels 1 or 3) to convert all of them"
            )
        if image.mode in ("I", "F"):
            raise DataError(
                f"{image_name(record, row)} has 32 bits a pixel (mode {image.mode}), whose range is not "
                f"known; save it with 8 or 16"
            )
        mode = "L" if self.channels == 1 else "RGB"
        height, width = self.size
        with naming_the_image(record, row):
            image = eight_bits(image) if image.mode.startswith("I;16") else image
            image = image if image.mode == mode else image.convert(mode)
            image = image if self.crop is None else central_part(image, self.crop)
        if (image.height, image.width) != (height, width):
            if not self.resize:
                raise DataError(
                    f"{image_name(record, row)} is {image.height}x{image.width}, the first image is "
                    f"{height}x{width}; give a size (--size) to resize and crop all of them"
                )
            with naming_the_image(record, row):
                image = resize_and_crop(image, height, width)
        return np.asarray(image)

    def digest(self) -> str:
        """Changes with every image, their order and their labels, and not with where the files lie."""
        labels = torch.empty(0, dtype=torch.int64) if self.labels is None else self.labels
        parts = (f"{len(self)} images\n".encode(), self.hashes.tobytes(), labels.numpy().tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def histogram(self, rows: Sequence[int] | None = None) -> Tensor:
        """How many pixels have each of the 256 levels, in all images or in ``rows``: ``[256]`` int64.

        Images are read a few at a time, so that memory does not grow with their number.
        """
        if rows is None and self._histogram is not None:
            return self._histogram
        counts = torch.zeros(256, dtype=torch.int64)
        images = range(len(self)) if rows is None else rows
        step = max(1, 2**20 // (self.channels * self.size[0] * self.size[1]))
        for start in range(0, len(images), step):
            counts += torch.bincount(self.batch(images[start : start + step]).flatten(), minlength=256)
        return counts

    def _check(self, on_decoded: Callable[[int], object] | None) -> None:
        """Decode every image once and keep none but how often each level occurs."""

        def decode(record: dict[str, Any], row: int) -> NDArray[np.int64]:
            return np.bincount(self._pixels_of(record, row).reshape(-1), minlength=256)

        counts = np.zeros(256, dtype=np.int64)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(self), 1024):
                rows = range(start, min(start + 1024, len(self)))
                counts += sum(pool.map(decode, self._encoded[list(rows)][self._column], rows))
                if on_decoded is not None:
                    on_decoded(len(rows))
        self._histogram = torch.from_numpy(counts)


def central_part(image: Image, share: float) -> Image:
    """The middle of an image: of each side the ``share``, of one pixel at least."""
    height, width = cropped_size(image.height, image.width, share)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def cropped_size(height: int, width: int, share: float) -> tuple[int, int]:
    """The size of :func:`central_part` of an image of ``height`` x ``width``."""
    return max(1, round(height * share)), max(1, round(width * share))


def resize_and_crop(image: Image, height: int, width: int) -> Image:
    """Scale the image until it just covers ``height`` x ``width`` (Lanczos), then crop its centre."""
    from PIL.Image import Resampling

    scale = max(height / image.height, width / image.width)
    scaled = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Resampling.LANCZOS
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return scaled.crop((left, top, left + width, top + height))


def eight_bits(image: Image) -> Image:
    """16 bits of grey to 8: ``x * 255 / 65535``, where Pillow's own conversion cuts off above 255."""
    from PIL import Image as pillow

    return pillow.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
