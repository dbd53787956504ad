"""Folders of images for the tests of models/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.data import DataConfig, load_data


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 10), mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(str(folder)))
    for number in range(count):
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number:02d}.png")


def load(data: object, *, stream: bool = False, **settings: object):
    return load_data(DataConfig(data=str(data), **settings), stream=stream)
