"""Pixels: 16 bits, colour among grey, streams, and bad images named before training starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import load, write_images
from PIL import Image

from models.data import DataError


def test_sixteen_bits_keep_their_levels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for number in range(9):
        Image.fromarray(ramp).save(tmp_path / f"{number}.png")
        Image.fromarray(ramp.astype(">u2")).save(tmp_path / f"{number}.tif")
    for channels in (1, 3):
        data = load(tmp_path, channels=channels, split_by="number")  # of two different files
        for row in range(len(data.train)):
            assert (data.train.batch([row])[0] == torch.arange(256).view(16, 16)).all()
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "0.tif")
    with pytest.raises(DataError, match=r"0.tif has 32 bits a pixel \(mode F\), .*save it with 8 or 16"):
        load(tmp_path, split_by="number")


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
def test_a_coloured_image_among_grey_ones_is_named(tmp_path: Path, cache_gb: float) -> None:
    for name in ("train", "val", "test"):
        write_images(tmp_path / name, 4, mode="L")
    write_images(tmp_path / "test", 2)
    with pytest.raises(
        DataError, match=r"test/00.png is coloured \(mode RGB\), the first image is grey; give ch"
    ):
        load(tmp_path, cache_gb=cache_gb)
    assert load(tmp_path, cache_gb=cache_gb, channels=3).test.batch([0]).shape == (1, 3, 8, 10)
    assert load(tmp_path, cache_gb=cache_gb, channels=1).test.batch([0]).shape == (1, 1, 8, 10)


def test_a_stream_decodes_what_is_read_and_no_more(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_images(tmp_path / name, 4)
    for bad in ("train/03.png", "val/00.png", "test/02.png"):
        (tmp_path / bad).write_bytes((tmp_path / bad).read_bytes()[:150])
    data = load(tmp_path, stream=True)
    assert not data.test.cached
    assert data.test.batch([0, 1, 3]).shape == (3, 3, 8, 10)
    with pytest.raises(DataError, match=r"test/02.png cannot be read as an image"):
        data.test.batch([1, 2])


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
def test_bad_images_are_named_before_training(tmp_path: Path, cache_gb: float) -> None:
    write_images(tmp_path, 9)
    write_images(tmp_path / "extra", 1, size=(12, 10))
    (tmp_path / "extra" / "00.png").rename(tmp_path / "zz.png")
    (tmp_path / "extra").rmdir()
    with pytest.raises(DataError, match=r"zz.png is 12x10, the first image is 8x10; give a size"):
        load(tmp_path, cache_gb=cache_gb)
    assert len(load(tmp_path, cache_gb=cache_gb, size="8").train) > 0
    (tmp_path / "zz.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"zz.png cannot be read as an image \(no known format\); replace"):
        load(tmp_path, cache_gb=cache_gb)


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_truncated_pixels_are_found_before_training(tmp_path: Path, cache_gb: float, split: str) -> None:
    for name in ("train", "val", "test"):
        write_images(tmp_path / name, 4)
    bad = tmp_path / split / "02.png"
    bad.write_bytes(bad.read_bytes()[:150])
    Image.open(bad)  # its header is whole
    with pytest.raises(DataError, match=rf"{split}/02.png cannot be read as an image"):
        load(tmp_path, cache_gb=cache_gb)


def test_images_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    """A photograph that its camera stored lying on its side is 12 high and 8 wide."""
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:, :6] = 255  # left half white: upright, the top half
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    (tmp_path / "a").mkdir()
    for number in range(10):
        image.save(tmp_path / "a" / f"{number}.png", exif=exif)
    data = load(tmp_path, split_by="number")  # of equal files
    assert data.size == (12, 8)
    first = data.train.batch([0])[0]
    assert first[:, :6].min() == 255
    assert first[:, 6:].max() == 0
    image.save(tmp_path / "a" / "0.png", exif=b"Exif\0\0no such block")
    with pytest.raises(DataError, match=r"is 8x12, the first image is 12x8|is 12x8, the first image is 8x12"):
        load(tmp_path, split_by="number")
