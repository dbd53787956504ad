"""What is known of a kind of data, in one place: images, sounds and volumes are one subclass each."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from models.data.errors import DataError
from models.data.kinds.levels import level_count, to_levels
from models.data.records import Encoded, Record
from models.data.settings import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Figure:
    """A figure of the quality of reconstructions.

    title, unit: of its curve. higher_is_better: which way it should go. is_drawn: among the curves of a run.
    """

    title: str
    unit: str
    higher_is_better: bool
    is_drawn: bool = True


class Kind(ABC):
    """A kind of data, and the form in which all items of one data set are held.

    An item is ``[C, *S]`` of integer levels, which models see in -0.5..0.5
    (:func:`models.data.kinds.levels.to_float`). A subclass says how items are found, decoded, measured, shown
    and written; little else in this project asks which kind data are of. Of ``Images((32, 32), 3)`` a batch
    of 8 is ``[8, 3, 32, 32]`` uint8.

    Attributes:
        name: of the setting ``kind``.
        item, items: what one of them is called in messages, and several.
        ndim: axes of an item beside its channels.
        dtype: of the levels, uint8 or int16.
        suffixes: of the files that hold an item, lower case.
        likelihoods: which of :mod:`models.autoencoders.likelihoods` can be had.
        own_settings: the settings of :class:`models.data.DataConfig` that say the form of items.
        size_setting: the one of them that says their size.
        figures: beside the squared error, by name: what :meth:`measure` returns.
        columns: pairs of original and reconstruction in a row of a picture.
        has_files: items are written one by one beside every picture, since it does not show all of them.
        has_rfid: the feature networks of rFID take the items.
        augments: items can be mirrored, enlarged and shifted (:mod:`models.data.augment`) and stay what they
            are, so that models, and the convolutional judge of samples, can learn from changed ones.
        at_once: items that are read together.
        size: S of every item.
        channels: C of every item.
    """

    name: ClassVar[str]
    item: ClassVar[str]
    items: ClassVar[str]
    ndim: ClassVar[int]
    dtype: ClassVar[torch.dtype]
    suffixes: ClassVar[tuple[str, ...]]
    likelihoods: ClassVar[tuple[str, ...]] = ("mse", "gaussian", "logistic", "categorical")
    own_settings: ClassVar[tuple[str, ...]]
    size_setting: ClassVar[str] = "size"
    figures: ClassVar[Mapping[str, Figure]]
    columns: ClassVar[int] = 8
    has_files: ClassVar[bool] = False
    has_rfid: ClassVar[bool] = False
    augments: ClassVar[bool] = False
    at_once: ClassVar[int] = 1024

    size: tuple[int, ...]
    channels: int

    def scale(self, variance: float) -> float:
        """The unit in which the convolutions of a model see items in the models' range.

        variance: of the data in that range.
        """
        return 1.0

    @property
    def array_dtype(self) -> np.dtype[Any]:
        """The dtype of decoded arrays."""
        return np.dtype(str(self.dtype).removeprefix("torch."))

    @property
    def levels(self) -> int:
        """How many levels an element has."""
        return level_count(self.dtype)

    @classmethod
    @abstractmethod
    def is_feature(cls, feature: Any) -> bool:
        """Whether ``feature`` is the type that Hugging Face datasets give columns of this kind."""

    @classmethod
    def is_plain_feature(cls, feature: Any) -> bool:
        """Whether a column of the type ``feature`` may be of this kind where no other column is of any."""
        return False

    @classmethod
    @abstractmethod
    def is_record(cls, record: Record) -> bool:
        """Whether bytes, or the file that is named in their place, are of this kind as they look."""

    @classmethod
    def undecoded(cls, dataset: Dataset, column: str) -> Dataset:
        """The data set with ``column`` as records of {"path", "bytes"}, or as plain arrays."""
        return dataset

    @classmethod
    def has_suffix(cls, name: str) -> bool:
        """Whether a file called ``name`` holds an item of this kind by its suffix."""
        return name.lower().endswith(cls.suffixes)

    @classmethod
    @abstractmethod
    def fitted(cls, splits: Mapping[str, Encoded], config: DataConfig) -> tuple[Self, tuple[str, ...]]:
        """The form that all items of ``splits`` get, and in words what has to be done to some for it.

        Raises DataError where ``config`` asks for a form that there is not, or does not say enough.
        """

    @classmethod
    @abstractmethod
    def from_array(cls, array: NDArray[Any], row: int) -> NDArray[np.integer]:
        """Levels ``[C, *S]`` of an item that a program gave as an array, in row ``row``. DataError."""

    @classmethod
    @abstractmethod
    def of_arrays(cls, shape: Sequence[int], config: DataConfig) -> Self:
        """The form of items that a program gave as arrays, whose levels are of ``shape`` = (C, *S)."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The form that :meth:`settings` described."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The form, by the names of the settings that ask for it, as values for JSON."""

    @abstractmethod
    def decoding(self) -> dict[str, Any]:
        """What a decoded item depends on beside its file and its shape, as values for JSON."""

    @abstractmethod
    def decode(self, encoded: bytes, name: str) -> NDArray[np.integer]:
        """Levels ``[C, *S]`` from the bytes of a file. DataError, which calls the item ``name``."""

    @abstractmethod
    def describe(self) -> str:
        """The form in words, to follow "images of"."""

    @abstractmethod
    def measure(self, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The :attr:`figures` of each item, ``[B]``; NaN for one that has no such figure.

        x, reconstruction: ``[B, C, *S]`` in -0.5..0.5.
        """

    @abstractmethod
    def pictures(self, x: Tensor) -> Tensor:
        """A picture of each item ``[B, C, *S]`` in the models' range: uint8 ``[B, 1 or 3, H, W]``."""

    @abstractmethod
    def features(self, levels: Tensor) -> Tensor:
        """What a classifier without convolutions sees of levels ``[B, C, *S]``: float32 ``[B, F]``."""

    @abstractmethod
    def write(self, levels: Tensor, path: Path) -> Path:
        """Write one item ``[C, *S]``, as levels, into a file beside ``path``, which has no suffix."""

    def to_levels(self, x: Tensor) -> Tensor:
        """Items in the models' range as levels, rounded and clamped."""
        return to_levels(x, self.dtype)

    def write_all(self, x: Tensor, folder: Path, names: Sequence[str]) -> None:
        """Write items ``[B, C, *S]`` in the models' range into ``folder``, one file each, called ``names``.

        What an earlier call left there goes, since it would pass for this one's.
        """
        self.clear(folder)
        for levels, name in zip(self.to_levels(x).cpu(), names, strict=True):
            self.write(levels, folder / file_name(name))

    @classmethod
    def clear(cls, folder: Path) -> None:
        """Remove what :meth:`write_all` left in ``folder``; only files whose names begin with a number."""
        for earlier in folder.glob("[0-9]*"):
            if cls.has_suffix(earlier.name):
                earlier.unlink()

    @classmethod
    def check_settings(cls, config: DataConfig) -> None:
        """DataError for a setting of the form of items that this kind does not have."""
        for name in ("size", "crop", "orient", "length", "rate", "channels", "value_range"):
            value = getattr(config, name)
            if value not in (None, False) and name not in cls.own_settings:
                accepted = ", ".join(cls.own_settings)
                raise DataError(
                    f"{name} is {value}, but the data are {cls.items}, whose form is set by {accepted}; "
                    f"leave it out"
                )


def parse_size(size: str, axes: int = 2) -> tuple[int, ...]:
    """``"64"``, the same for all ``axes``, or one number for each as in ``"48x64"``. DataError."""
    parts = str(size).lower().split("x")
    if len(parts) not in (1, axes) or not all(part.isdigit() and int(part) > 0 for part in parts):
        form = "x".join(("DEPTH", "HEIGHT", "WIDTH")[-axes:])
        raise DataError(f"size is {size!r}; accepted: a number such as 64, or {form}")
    return tuple(map(int, parts * (axes if len(parts) == 1 else 1)))


def file_name(text: str) -> str:
    """``text`` with what is no letter, digit, ``-`` or ``_`` replaced, to be the name of a file."""
    return re.sub(r"[^\w-]+", "_", text)
