"""Augmentation, one side for all, central crop, and classes of several columns."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from data_support import load, write_images
from PIL import Image

from models.data import DataError
from models.data.augment import NOISE, AugmentSettings, augment
from models.data.orientation import principal_axis, turned


def _images(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 12), generator=torch.Generator().manual_seed(0)).byte()


def test_half_of_the_images_are_mirrored() -> None:
    images, noise = _images(), torch.tensor([0.2, 0.7, 0.4, 0.9, 0.5, 0.0])[:, None].expand(6, NOISE)
    mirrored = augment(images, noise, AugmentSettings(mirror=True))
    assert [bool((new == old.flip(2)).all()) for new, old in zip(mirrored, images, strict=True)] == [
        *(True, False, True, False, False, True)
    ]
    assert augment(images, noise, AugmentSettings()) is images


def test_a_shift_moves_whole_pixels_and_reflects_at_the_border() -> None:
    images = _images(1)
    noise = torch.tensor([[0.9, 0.0, 1.0, 0.5]])  # a quarter of 12 pixels to the left, nothing down
    shifted = augment(images, noise, AugmentSettings(shift=0.25))
    expected = torch.cat([images[..., 3:], images[..., -3:].flip(3)], dim=3)
    assert shifted.dtype == torch.uint8
    assert (shifted.int() - expected.int()).abs().max() <= 1


def test_a_zoom_shows_the_middle() -> None:
    ramp = torch.linspace(-0.5, 0.5, 16).expand(1, 1, 16, 16)
    zoomed = augment(ramp, torch.ones(1, NOISE), AugmentSettings(zoom=0.5))
    inner = torch.linspace(-0.5, 0.5, 31)[8:23]  # of the half about the centre, twice as many
    assert abs(float(zoomed[0, 0, 8, 0]) - float(inner[0])) < 0.03
    assert zoomed.min() > -0.3
    assert zoomed.max() < 0.3


def test_equal_noise_changes_an_image_equally_in_any_batch() -> None:
    images, noise = _images(), torch.rand(6, NOISE, generator=torch.Generator().manual_seed(1))
    settings = AugmentSettings(mirror=True, zoom=0.2, shift=0.1)
    together = augment(images, noise, settings)
    assert not (together == images).all()
    for row in range(6):  # the range to which bicubic interpolation is clamped is that of the batch
        alone = augment(images[row : row + 1], noise[row : row + 1], settings)[0]
        assert (alone.int() - together[row].int()).abs().max() <= 2


@pytest.mark.parametrize(("name", "value"), [("zoom", 1.0), ("shift", -0.1), ("zoom", float("nan"))])
def test_augmentation_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is "):
        AugmentSettings(**{name: value}).check_augment()


def test_images_and_their_mirror_images_are_turned_to_the_same_side() -> None:
    images = _images(40)
    images[:, :, :, 6:] //= 4  # lighter on one side, and so on the other once mirrored
    mixed = torch.where(torch.arange(40)[:, None, None, None] % 3 == 0, images.flip(3), images)
    axis = principal_axis(mixed.split(7))
    assert (turned(mixed, axis) == turned(images, axis)).all()
    sides = turned(mixed, axis).float().mean((0, 1, 2))
    assert abs(float(sides[:6].mean() - sides[6:].mean())) > 50
    assert torch.equal(principal_axis([mixed.flip(3)]), principal_axis([mixed]))


def test_orient_turns_every_split_by_what_the_training_images_show(tmp_path: Path) -> None:
    for name, count in (("train", 9), ("val", 2), ("test", 2)):
        write_images(tmp_path / name, count, size=(8, 8))
        for number, file in enumerate(sorted((tmp_path / name).iterdir())):
            pixels = np.array(Image.open(file))
            pixels[:, 4:] //= 4
            Image.fromarray(pixels if number % 2 else pixels[:, ::-1].copy()).save(file)
    plain, oriented = load(tmp_path), load(tmp_path, orient=True)
    for name in ("train", "validation", "test"):
        means = oriented.split(name).batch(range(2)).float().mean((1, 2))  # [2, W]
        assert len((means[:, :4].mean(1) > means[:, 4:].mean(1)).unique()) == 1, name
    assert "orient" not in plain.settings
    assert oriented.settings["orient"] is True
    streamed = load(tmp_path, orient=True, stream=True)
    assert torch.equal(streamed.test.batch([0, 1]), oriented.test.batch([0, 1]))


def test_the_centre_is_cropped_before_anything_is_resized(tmp_path: Path) -> None:
    write_images(tmp_path, 9, size=(20, 10))
    whole, middle = load(tmp_path), load(tmp_path, crop=0.5)
    assert middle.size == (10, 5)
    assert torch.equal(middle.train.batch([0]), whole.train.batch([0])[..., 5:15, 2:7])
    assert load(tmp_path, crop=0.5, size="4").size == (4, 4)
    assert middle.settings["crop"] == 0.5
    with pytest.raises(DataError, match=r"crop is 1\.5; accepted: a share above 0, up to 1"):
        load(tmp_path, crop=1.5)


def test_classes_may_be_the_combinations_of_columns(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 30, size=(4, 4))
    files = sorted((tmp_path / "images").iterdir())
    table = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "sex": [number % 2 for number in range(30)],
        "rank": [("high", "low")[number % 3 == 0] for number in range(30)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "sex": datasets.ClassLabel(names=["f", "m"]),
            "rank": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(table, features).to_parquet(tmp_path / "table" / "train.parquet")
    data = load(tmp_path / "table", label_column="sex,rank", split_by="number", validation=0.1, test=0.1)
    assert data.class_names == ("f+high", "f+low", "m+high", "m+low")
    assert data.settings["label_column"] == "sex,rank"
    first = int(torch.stack([data.train.batch([0])]).shape[1])
    assert first == 1
    counts = sum(data.split(name).labels.bincount(minlength=4) for name in ("train", "validation", "test"))
    assert counts.tolist() == [10, 5, 10, 5]
    with pytest.raises(DataError, match="has no column 'age' for labels; its columns are image, sex, rank"):
        load(tmp_path / "table", label_column="sex,age")
