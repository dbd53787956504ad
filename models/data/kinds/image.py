"""Images: 8 bits a pixel, grey or colour."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from models.data.errors import DataError
from models.data.kinds.base import Figure, Kind, parse_size
from models.data.kinds.levels import to_uint8
from models.data.kinds.similarity import similarity_figures
from models.data.records import Encoded, Record, naming
from models.data.settings import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from PIL.Image import Image

GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


@dataclass(frozen=True)
class Images(Kind):
    """Images of one size, of 1 channel or 3; a pixel is a byte.

    crop: share of each side of an image that is kept, about its centre, before all else; None for all of it.
    resize, recolour: fit an image of another size, or a coloured one among grey ones; else it is an error.
    """

    name: ClassVar[str] = "image"
    item: ClassVar[str] = "image"
    items: ClassVar[str] = "images"
    ndim: ClassVar[int] = 2
    dtype: ClassVar[torch.dtype] = torch.uint8
    suffixes: ClassVar[tuple[str, ...]] = (
        *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif"),
        *(".tiff", ".webp"),
    )
    own_settings: ClassVar[tuple[str, ...]] = ("size", "crop", "orient", "channels")
    figures: ClassVar[Mapping[str, Figure]] = {
        "ssim": Figure("SSIM", "SSIM", higher_is_better=True),
        "inner_ssim": Figure("inner SSIM", "SSIM", higher_is_better=True, is_drawn=False),
    }
    has_rfid: ClassVar[bool] = True
    augments: ClassVar[bool] = True

    size: tuple[int, ...]
    channels: int
    crop: float | None = None
    resize: bool = field(default=False, compare=False)
    recolour: bool = field(default=False, compare=False)

    @classmethod
    def is_feature(cls, feature: Any) -> bool:
        import datasets

        return isinstance(feature, datasets.Image)

    @classmethod
    def is_plain_feature(cls, feature: Any) -> bool:
        """Bytes, as tables hold them that were not written by Hugging Face datasets."""
        return getattr(feature, "dtype", None) in ("binary", "large_binary")

    @classmethod
    def is_record(cls, record: Record) -> bool:
        """Any: what is none of the other kinds, which are asked first, is an image or cannot be read."""
        return True

    @classmethod
    def undecoded(cls, dataset: Dataset, column: str) -> Dataset:
        import datasets

        return dataset.cast_column(column, datasets.Image(decode=False))

    @classmethod
    def fitted(cls, splits: Mapping[str, Encoded], config: DataConfig) -> tuple[Self, tuple[str, ...]]:
        """The size and colours of the first training image, where ``config`` does not say them."""
        (first,) = splits["train"].map(open_image, [0])
        if config.crop is not None and not 0 < config.crop <= 1:
            raise DataError(
                f"crop is {config.crop}; accepted: a share above 0, up to 1, none for the whole image"
            )
        own_size = cropped_size(first.height, first.width, config.crop or 1.0)
        size = parse_size(config.size) if config.size else own_size
        channels = (1 if first.mode in GREY_MODES else 3) if config.channels is None else config.channels
        if channels not in (1, 3):
            raise DataError(f"channels is {channels}; accepted: 1 for grey, 3 for colour")
        resize, recolour = config.size is not None, config.channels is not None
        return cls(size, channels, config.crop, resize=resize, recolour=recolour), ()

    @classmethod
    def from_array(cls, array: NDArray[Any], row: int) -> NDArray[np.integer]:
        """Of uint8 ``[H, W]`` or ``[C, H, W]``, or ``[H, W, C]`` as PIL has it, of 1 or 3 channels."""
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise DataError(
                f"image {row} is {array.dtype} of shape {array.shape}; accepted: uint8 [H, W], [C, H, W] or "
                f"an image of PIL"
            )
        if array.ndim == 2:
            array = array[None]
        elif array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):  # as PIL has it
            array = array.transpose(2, 0, 1)
        if array.shape[0] not in (1, 3):
            raise DataError(f"image {row} is of shape {array.shape}; accepted: 1 or 3 channels")
        return np.ascontiguousarray(array)

    @classmethod
    def of_arrays(cls, shape: Sequence[int], config: DataConfig) -> Self:
        return cls(tuple(shape[1:]), shape[0])

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        # What a program gave says neither, and pictures need neither.
        size = parse_size(settings["size"]) if "size" in settings else ()
        return cls(size, settings.get("channels", 0), settings.get("crop"))

    def settings(self) -> dict[str, Any]:
        crop = {} if self.crop is None else {"crop": self.crop}  # what was made before does not name it
        return {"size": f"{self.size[0]}x{self.size[1]}", "channels": self.channels} | crop

    def decoding(self) -> dict[str, Any]:
        import PIL

        how = {"resize": self.resize, "recolour": self.recolour, "crop": self.crop}
        return how | {"pillow": PIL.__version__}

    def describe(self) -> str:
        colours = "grey (1 channel)" if self.channels == 1 else "colour (3 channels)"
        return f"{self.size[0]}x{self.size[1]}, {colours}"

    def decode(self, encoded: bytes, name: str) -> NDArray[np.integer]:
        image = open_image(encoded, name)
        if self.channels == 1 and image.mode not in GREY_MODES and not self.recolour:
            raise DataError(
                f"{name} is coloured (mode {image.mode}), the first image is grey; "
                f"give channels (--channels 1 or 3) to convert all of them"
            )
        if image.mode in ("I", "F"):
            raise DataError(
                f"{name} has 32 bits a pixel (mode {image.mode}), whose range is not "
                f"known; save it with 8 or 16"
            )
        mode = "L" if self.channels == 1 else "RGB"
        height, width = self.size
        with naming(name, self.item):
            image = eight_bits(image) if image.mode.startswith("I;16") else image
            image = image if image.mode == mode else image.convert(mode)
            image = image if self.crop is None else central_part(image, self.crop)
        if (image.height, image.width) != (height, width):
            if not self.resize:
                raise DataError(
                    f"{name} is {image.height}x{image.width}, the first image is "
                    f"{height}x{width}; give a size (--size) to resize and crop all of them"
                )
            with naming(name, self.item):
                image = resize_and_crop(image, height, width)
        pixels = np.asarray(image)  # [H, W] or [H, W, C]
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def measure(self, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        return similarity_figures(x, reconstruction)

    def pictures(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def features(self, levels: Tensor) -> Tensor:
        return levels.flatten(1).float().div(255)

    def write(self, levels: Tensor, path: Path) -> Path:
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(path.name + ".png")
        pixels = levels.permute(1, 2, 0).squeeze(-1).numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file)
        return file


def open_image(encoded: bytes, name: str) -> Image:
    """An image, turned as its EXIF orientation says; DataError that calls it ``name``.

    A block that is no EXIF at all gives no orientation.
    """
    from PIL import Image as pillow
    from PIL import ImageOps

    with naming(name, "image"):
        image = pillow.open(io.BytesIO(encoded))
        image.load()
    with naming(name, "image", "save it again without EXIF data"), contextlib.suppress(SyntaxError):
        ImageOps.exif_transpose(image, in_place=True)
    return image


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
