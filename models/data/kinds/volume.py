"""Volumes: 8 bits a voxel, one channel."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.errors import DataError
from models.data.kinds.base import Figure, Kind, parse_size
from models.data.kinds.levels import to_uint8
from models.data.kinds.similarity import similarity_figures
from models.data.records import Encoded, Record, naming
from models.data.settings import DataConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

GZIP = b"\x1f\x8b"
EACH = "each"  # the value_range of volumes that are spread over all levels one by one
GAP = 2  # white pixels between two slices in a picture


@dataclass(frozen=True)
class Volumes(Kind):
    """Volumes of one size (depth, height, width) and one channel; a voxel is a byte.

    value_range: the values that become the levels 0 and 255, with those beyond cut off; None for volumes of
    bytes, which are taken as they are; "each" for the lowest and highest value of each volume. resize: fit a
    volume of another size; else it is an error.
    """

    name: ClassVar[str] = "volume"
    item: ClassVar[str] = "volume"
    items: ClassVar[str] = "volumes"
    ndim: ClassVar[int] = 3
    dtype: ClassVar[torch.dtype] = torch.uint8
    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".nii", ".nii.gz")
    own_settings: ClassVar[tuple[str, ...]] = ("size", "value_range")
    figures: ClassVar[Mapping[str, Figure]] = {
        "ssim": Figure("SSIM", "SSIM", higher_is_better=True),
        "inner_ssim": Figure("inner SSIM", "SSIM", higher_is_better=True, is_drawn=False),
    }
    columns: ClassVar[int] = 2
    has_files: ClassVar[bool] = True
    at_once: ClassVar[int] = 16

    size: tuple[int, ...]
    value_range: str | None = None
    resize: bool = field(default=False, compare=False)
    channels: int = 1

    @classmethod
    def is_feature(cls, feature: Any) -> bool:
        import datasets

        return isinstance(feature, datasets.Array3D)

    @classmethod
    def is_plain_feature(cls, feature: Any) -> bool:
        """Lists of lists of lists of numbers."""
        import datasets

        depth = 0
        while isinstance(feature, datasets.List):
            feature, depth = feature.feature, depth + 1
        is_number = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))
        return depth == 3 and is_number

    @classmethod
    def is_record(cls, record: Record) -> bool:
        encoded = record["bytes"]
        if encoded is None:
            return record["path"] is not None and cls.has_suffix(record["path"])
        return (
            encoded[:6] == b"\x93NUMPY" or encoded[344:347] in (b"n+1", b"ni1") or encoded[:2] == b"\x1f\x8b"
        )

    @classmethod
    def fitted(cls, splits: Mapping[str, Encoded], config: DataConfig) -> tuple[Self, tuple[str, ...]]:
        """The size of the first training volume, where ``config`` does not say one."""
        parse_range(config.value_range)
        (first,) = splits["train"].map(read_volume, [0])
        size = parse_size(config.size, 3) if config.size else first.shape
        done: tuple[str, ...] = ()
        if config.size is not None:
            done += (f"scaled to cover {_product(size)}, and the centre cut out",)
        if config.value_range == EACH:
            done += ("the values of each volume spread over 0 to 255",)
        elif config.value_range is not None:
            done += (f"values from {config.value_range.replace(',', ' to ')} spread over 0 to 255",)
        return cls(size, config.value_range, resize=config.size is not None), done

    @classmethod
    def from_array(cls, array: NDArray[Any], row: int) -> NDArray[np.integer]:
        """Of uint8 ``[D, H, W]``."""
        if array.dtype != np.uint8 or array.ndim != 3:
            raise DataError(
                f"volume {row} is {array.dtype} of shape {array.shape}; accepted: uint8 [D, H, W]"
            )
        return np.ascontiguousarray(array[None])

    @classmethod
    def of_arrays(cls, shape: Sequence[int], config: DataConfig) -> Self:
        return cls(tuple(shape[1:]))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(parse_size(settings["size"], 3), settings["value_range"])

    def settings(self) -> dict[str, Any]:
        return {"kind": self.name, "size": _product(self.size), "value_range": self.value_range}

    def decoding(self) -> dict[str, Any]:
        return {"kind": self.name, "value_range": self.value_range, "resize": self.resize}

    def describe(self) -> str:
        return f"{_product(self.size)} voxels (1 channel)"

    def decode(self, encoded: bytes, name: str) -> NDArray[np.integer]:
        volume = read_volume(encoded, name)
        if volume.shape != self.size and not self.resize:
            raise DataError(
                f"{name} is {_product(volume.shape)}, the first volume is {_product(self.size)}; give a size "
                f"(--size) to scale and crop all of them"
            )
        if volume.dtype == np.uint8 and self.value_range is None and volume.shape == self.size:
            return volume[None]
        values = self._spread(volume, name)
        if volume.shape != self.size:
            values = scale_and_crop(values, self.size)
        levels: NDArray[np.integer] = to_uint8(values - 0.5).numpy()
        return levels[None]

    def _spread(self, volume: NDArray[Any], name: str) -> Tensor:
        """The values as float32 in 0..1. DataError for values that are not finite, or of no known range."""
        values = volume.astype(np.float64)
        broken = int((~np.isfinite(values)).sum())
        if broken:
            raise DataError(f"{name} holds {broken} values that are not finite; replace or remove it")
        limits = parse_range(self.value_range)
        if self.value_range == EACH:
            limits = float(values.min()), float(values.max())
            if limits[0] == limits[1]:
                raise DataError(
                    f"{name} has the same value everywhere; remove it, or give --value-range LOW,HIGH"
                )
        elif limits is None and volume.dtype == np.uint8:
            limits = 0.0, 255.0
        elif limits is None:
            raise DataError(
                f"{name} is of {volume.dtype} with values from {values.min():.6g} to {values.max():.6g}; "
                f"bytes are taken as they are, for others give the values that become 0 and 255 "
                f"(--value-range LOW,HIGH; each: the lowest and highest of each volume)"
            )
        low, high = limits
        return torch.from_numpy(((values - low) / (high - low)).clip(0, 1).astype(np.float32))

    def measure(self, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        return similarity_figures(x, reconstruction)

    def pictures(self, x: Tensor) -> Tensor:
        """The three slices through the middle, across depth, height and width, side by side."""
        levels = to_uint8(x)
        depth, height, width = levels.shape[2:]
        slices = (levels[:, :, depth // 2], levels[:, :, :, height // 2], levels[..., width // 2])
        tallest = max(height, depth)
        parts = []
        for part in slices:
            below, right = tallest - part.shape[2], 0 if part is slices[-1] else GAP
            parts.append(F.pad(part, (0, right, 0, below), value=255))
        return torch.cat(parts, dim=3)

    def features(self, levels: Tensor) -> Tensor:
        return levels.flatten(1).float().div(255)

    def write(self, levels: Tensor, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(path.name + ".npy")
        np.save(file, levels[0].numpy())
        return file


def read_volume(encoded: bytes, name: str) -> NDArray[Any]:
    """An array of three axes from the bytes of a ``.npy`` or NIfTI file. DataError that calls it ``name``."""
    with naming(name, Volumes.item):
        if encoded[:6] == b"\x93NUMPY":
            volume = np.load(io.BytesIO(encoded), allow_pickle=False)
        else:
            volume = _read_nifti(encoded, name)
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    if volume.ndim != 3 or 0 in volume.shape:
        raise DataError(f"{name} is of shape {volume.shape}; accepted: three axes, none empty")
    return volume


def _read_nifti(encoded: bytes, name: str) -> NDArray[Any]:
    """The scaled values, with axes towards right, anterior and superior as near as can be."""
    try:
        import nibabel
    except ImportError as error:
        raise DataError(
            f"{name} is read with nibabel, which is not installed; pip install nibabel"
        ) from error
    plain = gzip.decompress(encoded) if encoded[:2] == b"\x1f\x8b" else encoded
    kind: Any = (
        nibabel.Nifti2Image if plain[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
    )
    image: Any = nibabel.as_closest_canonical(kind.from_bytes(plain))
    values: NDArray[Any] = np.asanyarray(image.dataobj)
    return values


def scale_and_crop(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Scale float32 ``[D, H, W]`` until it just covers ``size``, then crop its centre.

    Smaller volumes are means over boxes, larger ones are interpolated along all three axes.
    """
    scale = max(wanted / side for wanted, side in zip(size, values.shape, strict=True))
    scaled = [max(wanted, round(side * scale)) for wanted, side in zip(size, values.shape, strict=True)]
    how: dict[str, Any] = {"mode": "area"} if scale < 1 else {"mode": "trilinear", "align_corners": False}
    values = F.interpolate(values[None, None], scaled, **how)[0, 0]
    for axis, wanted in enumerate(size):
        values = values.narrow(axis, (values.shape[axis] - wanted) // 2, wanted)
    return values


def parse_range(value_range: str | None) -> tuple[float, float] | None:
    """``"-1000,400"`` as two numbers; None where it says none. DataError."""
    if value_range in (None, EACH):
        return None
    try:
        low, high = map(float, str(value_range).split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not -np.inf < low < high < np.inf:
        raise DataError(f"value_range is {value_range!r}; accepted: LOW,HIGH with LOW below HIGH, or {EACH}")
    return low, high


def _product(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
