"""Small sounds and volumes for the tests of kinds of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": 16, "batch_size": 8}


def tone(frequency: float, samples: int = 512, rate: int = RATE, loudness: float = 0.5) -> np.ndarray:
    """A sine ``[samples]`` that begins at 0."""
    return loudness * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


def write_sounds(folder: Path, count: int = 6, samples: int = 512, suffix: str = ".wav") -> Path:
    """Tones in the folders ``low`` and ``high``, ``count`` of each, no two the same."""
    for name, frequency in (("low", 300.0), ("high", 1500.0)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            sound = tone(frequency + 10 * number, samples)
            soundfile.write(folder / name / f"{number:02d}{suffix}", sound, RATE, subtype="PCM_16")
    return folder


def ball(size: tuple[int, int, int], centre: float = 0.5) -> np.ndarray:
    """uint8 ``[D, H, W]``: bright at a place on the diagonal, darker away from it."""
    axes = np.meshgrid(*[np.linspace(0, 1, side) for side in size], indexing="ij")
    distance = np.sqrt(sum((axis - centre) ** 2 for axis in axes))
    return (255 * np.exp(-4 * distance)).round().astype(np.uint8)


def write_volumes(folder: Path, count: int = 12, size: tuple[int, int, int] = (8, 8, 8)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        np.save(folder / f"{number:02d}.npy", ball(size, number / count))
    return folder
