"""Folders of images for the tests of models/data."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from models.data import DataConfig, load_data


def seed_of(folder: Path) -> int:
    """By the last two names below the folder of the test: its own, with a number, differs from run to run."""
    parts = folder.parts
    numbered = [place for place, part in enumerate(parts) if re.fullmatch(r"pytest-\d+|popen-gw\d+", part)]
    own = parts[numbered[-1] + 2 :] if numbered else parts
    return zlib.crc32("/".join(own[-2:]).encode())


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 10), mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed_of(folder))
    for number in range(count):
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number:02d}.png")


def load(data: object, *, stream: bool = False, **settings: object):
    return load_data(DataConfig(data=str(data), **settings), stream=stream)


def kaokore(folder: Path) -> Path:
    rows = ["image,gender,status,set"]
    for number in range(12):
        name, kind = f"{number:08d}.jpg", ["train", "dev", "test"][number % 3]
        rows.append(f"{name},{number % 2},{number % 4},{kind}")
    write_images(folder / "made", 12, size=(16, 16))
    (folder / "images_256").mkdir()
    for number in range(12):
        image = Image.open(folder / "made" / f"{number:02d}.png")
        image.save(folder / "images_256" / f"{number:08d}.jpg")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder
