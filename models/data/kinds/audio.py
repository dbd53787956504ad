"""Sounds: 16 bits a sample, of one rate and one length."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.errors import DataError
from models.data.kinds.base import Figure, Kind
from models.data.kinds.levels import to_float
from models.data.kinds.mel import FLOOR, log_mel, log_mel_distance
from models.data.records import Encoded, Record, naming
from models.data.settings import DataConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

ROUNDING = 256  # a length that the data do not have is a multiple of this, so that models can halve it
MOST_FRAMES = 256  # columns in the picture of one sound


class Header(NamedTuple):
    """What the beginning of a file says of the sound in it."""

    name: str
    samples: int
    rate: int
    channels: int


@dataclass(frozen=True)
class Sounds(Kind):
    """Sounds of ``length`` samples, ``rate`` a second, of 1 channel or 2; a sample has 16 bits.

    Longer sounds are cut at their end, shorter ones padded with silence there. Those of another rate are
    resampled, and those of other channels mixed or repeated, where the settings ask for it; else they are
    an error, as are files that are cut off, hold no samples, or samples outside -1..1.
    """

    name: ClassVar[str] = "audio"
    item: ClassVar[str] = "sound"
    items: ClassVar[str] = "sounds"
    ndim: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.int16
    suffixes: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg")
    likelihoods: ClassVar[tuple[str, ...]] = ("mse", "gaussian", "logistic")
    own_settings: ClassVar[tuple[str, ...]] = ("length", "rate", "channels")
    size_setting: ClassVar[str] = "length"
    figures: ClassVar[Mapping[str, Figure]] = {
        "si_sdr": Figure("SI-SDR", "dB", higher_is_better=True),
        "log_mel_distance": Figure("log-mel distance", "dB", higher_is_better=False),
    }
    columns: ClassVar[int] = 4
    has_files: ClassVar[bool] = True
    at_once: ClassVar[int] = 256

    length: int
    channels: int
    rate: int

    def scale(self, variance: float) -> float:
        """What gives the sounds the deviation that images have, about 0.25: recordings are mostly quiet.

        Without it the first layers see little but their biases, and the codebook collapses.
        """
        return 4 * math.sqrt(variance)

    @property
    def size(self) -> tuple[int, ...]:  # type: ignore[override]
        """The one size, in samples."""
        return (self.length,)

    @classmethod
    def is_feature(cls, feature: Any) -> bool:
        import datasets

        return isinstance(feature, datasets.Audio)

    @classmethod
    def is_record(cls, record: Record) -> bool:
        encoded = record["bytes"]
        if encoded is None:
            return record["path"] is not None and cls.has_suffix(record["path"])
        is_riff = encoded[:4] in (b"RIFF", b"RF64") and encoded[8:12] == b"WAVE"
        return is_riff or encoded[:4] in (b"fLaC", b"OggS") or encoded[:3] == b"ID3"

    @classmethod
    def undecoded(cls, dataset: Dataset, column: str) -> Dataset:
        import datasets

        if not isinstance(dataset.features[column], datasets.Audio):
            return dataset
        return dataset.cast_column(column, datasets.Audio(decode=False))

    @classmethod
    def fitted(cls, splits: Mapping[str, Encoded], config: DataConfig) -> tuple[Self, tuple[str, ...]]:
        """Rate and channels of the first training sound, and the length of the longest one of all.

        That length is rounded up to a multiple of ``ROUNDING``, unless all sounds have the same.
        """
        headers = {
            name: [header for rows in split.chunks() for header in split.map(read_header, rows)]
            for name, split in splits.items()
        }
        first = headers["train"][0]
        rate = first.rate if config.rate is None else config.rate
        channels = first.channels if config.channels is None else config.channels
        if channels not in (1, 2):
            raise DataError(
                f"channels of {first.name} is {channels}; accepted: 1 or 2; give channels (--channels 1) to "
                f"mix them"
            )
        for name, value in (("length", config.length), ("rate", config.rate)):
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}; accepted: an integer of at least 1")
        every = [header for split in headers.values() for header in split]
        for header in every:
            if config.rate is None and header.rate != rate:
                raise DataError(
                    f"{header.name} has {header.rate} samples a second, {first.name} has {rate}; give a rate "
                    f"(--rate {rate}) to resample all of them"
                )
            if config.channels is None and header.channels != channels:
                raise DataError(
                    f"{header.name} has {header.channels} channels, {first.name} has {channels}; give "
                    f"channels (--channels 1 or 2) to mix or repeat those of all"
                )
        samples = [resampled_length(header.samples, header.rate, rate) for header in every]
        length = config.length
        if length is None:
            length = max(samples)
            length = length if len(set(samples)) == 1 else -(-length // ROUNDING) * ROUNDING
        actions = {
            f"cut to {length} samples": sum(count > length for count in samples),
            f"padded with silence to {length} samples": sum(count < length for count in samples),
            f"resampled to {rate} Hz": sum(header.rate != rate for header in every),
            "mixed or repeated": sum(header.channels != channels for header in every),
        }
        done = tuple(f"{count} {action}" for action, count in actions.items() if count)
        return cls(length, channels, rate), done

    @classmethod
    def from_array(cls, array: NDArray[Any], row: int) -> NDArray[np.integer]:
        """Of int16 ``[T]`` or ``[C, T]``."""
        if array.dtype != np.int16 or array.ndim not in (1, 2) or array.size == 0:
            raise DataError(
                f"sound {row} is {array.dtype} of shape {array.shape}; accepted: int16 [T] or [C, T], not "
                f"empty"
            )
        return np.ascontiguousarray(np.atleast_2d(array))

    @classmethod
    def of_arrays(cls, shape: Sequence[int], config: DataConfig) -> Self:
        if config.rate is None:
            raise DataError("rate is None; accepted for sounds given as arrays: their samples a second")
        return cls(shape[1], shape[0], config.rate)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["length"], settings["channels"], settings["rate"])

    def settings(self) -> dict[str, Any]:
        return {"kind": self.name, "length": self.length, "channels": self.channels, "rate": self.rate}

    def decoding(self) -> dict[str, Any]:
        soundfile = _soundfile()
        return {"kind": self.name, "rate": self.rate, "libsndfile": soundfile.__libsndfile_version__}

    def describe(self) -> str:
        channels = "mono (1 channel)" if self.channels == 1 else "stereo (2 channels)"
        return f"{self.length} samples ({self.length / self.rate:.2f} s at {self.rate} Hz), {channels}"

    def decode(self, encoded: bytes, name: str) -> NDArray[np.integer]:
        soundfile = _soundfile()
        with naming(name, self.item):
            _check_whole(encoded)
            with soundfile.SoundFile(io.BytesIO(encoded)) as file:
                promised, rate, is_float = file.frames, file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
                sound = file.read(dtype="float64", always_2d=True).T  # [C, T] in -1..1
            if sound.shape[1] < promised:
                raise DataError(f"{name} holds {sound.shape[1]} of {promised} samples; replace or remove it")
        if not np.isfinite(sound).all():
            raise DataError(f"{name} holds samples that are not finite; replace or remove it")
        if is_float and np.abs(sound).max(initial=0.0) > 1:  # codecs that lose something overshoot a little
            raise DataError(
                f"{name} holds samples up to {np.abs(sound).max():.4g}; accepted: from -1 to 1; save it again"
            )
        if len(sound) != self.channels:
            sound = np.repeat(sound.mean(0, keepdims=True), self.channels, axis=0)
        if rate != self.rate:
            from scipy.signal import resample_poly

            divisor = math.gcd(rate, self.rate)
            sound = resample_poly(sound, self.rate // divisor, rate // divisor, axis=1)
        sound = sound[:, : self.length]
        levels = np.round(sound * 32768).clip(-32768, 32767).astype(np.int16)
        return np.pad(levels, ((0, 0), (0, self.length - levels.shape[1])))

    def measure(self, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Scale-invariant signal-to-distortion ratio (arXiv:1811.02508), which silence has none of."""
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

        x, reconstruction = x.float(), reconstruction.float()
        ratio = scale_invariant_signal_distortion_ratio(reconstruction, x).mean(1)
        loudest = x.abs().flatten(1).amax(1)  # silence is half a level above the middle of the range
        return {
            "si_sdr": torch.where(loudest > 1 / self.levels, ratio, torch.nan),
            "log_mel_distance": log_mel_distance(x, reconstruction, self.rate),
        }

    def pictures(self, x: Tensor) -> Tensor:
        """Log-mel spectrograms, of the mean of the channels: time to the right, frequency upwards."""
        import matplotlib

        levels = log_mel(x.float().mean(1, keepdim=True).cpu(), self.rate)  # [B, 1, bands, frames]
        bands, frames = levels.shape[-2:]
        if frames > MOST_FRAMES:
            levels = F.adaptive_avg_pool2d(levels, (bands, MOST_FRAMES))
        shade = (1 - levels[:, 0].flip(1) / FLOOR).clamp(0, 1)
        colours = torch.from_numpy(matplotlib.colormaps["magma"](range(256))[:, :3])  # [256, 3]
        pixels = (
            (colours * 255).round().to(torch.uint8)[(shade * 255).round().long()]
        )  # [B, bands, frames, 3]
        return pixels.permute(0, 3, 1, 2)

    def features(self, levels: Tensor) -> Tensor:
        """The log-mel spectrogram, from 0 for silence to 1 for full scale."""
        return (1 - log_mel(to_float(levels), self.rate) / FLOOR).flatten(1)

    def write(self, levels: Tensor, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(path.name + ".wav")
        _soundfile().write(file, levels.T.numpy(), self.rate, subtype="PCM_16")
        return file


def read_header(encoded: bytes, name: str) -> Header:
    """What a file says of its sound. DataError for one of no samples, or of no format that is known."""
    soundfile = _soundfile()
    with naming(name, Sounds.item):
        _check_whole(encoded)
        info = soundfile.info(io.BytesIO(encoded))
    if info.frames == 0:
        raise DataError(f"{name} holds no samples; remove it")
    return Header(name, info.frames, info.samplerate, info.channels)


def resampled_length(samples: int, rate: int, wanted: int) -> int:
    """How many samples a sound has after it was resampled."""
    return -(-samples * wanted // rate)


def _check_whole(encoded: bytes) -> None:
    """ValueError for a WAV file that ends before its samples do, which the decoder would take for shorter."""
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(encoded):
        size = int.from_bytes(encoded[place + 4 : place + 8], "little")
        # Writers that could not seek back leave the highest size: all that follows.
        if encoded[place : place + 4] == b"data" and size < 2**32 - 256 and place + 8 + size > len(encoded):
            raise ValueError(
                f"its header promises {size} bytes of samples, {len(encoded) - place - 8} are there"
            )
        place += 8 + size + size % 2


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise DataError(
            "sounds are read with soundfile, which is not installed; pip install soundfile"
        ) from error
    return soundfile
