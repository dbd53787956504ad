"""What is taken from folders as people and tools leave them, what is not, and that it is said."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from data_support import load, write_images
from PIL import Image

from models.cli import main
from models.data import DataConfig, DataError, ImageData
from models.data.sources import split_named


def images_in(data: ImageData) -> int:
    return sum(len(data.split(name)) for name in ("train", "validation", "test"))


def test_one_line_says_what_was_loaded(tmp_path: Path, capsys) -> None:
    write_images(tmp_path / "set" / "ant", 12)
    write_images(tmp_path / "set" / "bee", 18)
    data = load(tmp_path / "set", limit=20)
    said = data.describe()
    held = f"{len(data.validation)} validation, {len(data.test)} test images of"
    assert len(data.validation) + len(data.test) < 20
    assert f"20 train, {held} 8x10, colour (3 channels)" in said
    counts = data.train.labels.bincount().tolist()
    beyond = 30 - images_in(data)
    classes = f"2 classes in train: ant {counts[0]}, bee {counts[1]}; left out:"
    assert f"{classes} {beyond} images beyond the limit" in said
    train = ["train", "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "set"), "--limit", "8"]
    train += ["--size", "8", "--steps", "1", "--batch-size", "4", "--hidden", "8", "--no-progress"]
    assert main([*train, "--downscale", "2", "--accelerator", "cpu", "--pictures-every", "0"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert "8 train, " in first
    assert " test images of 8x8, " in first


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere" / "ant", 12)
    write_images(tmp_path / "set" / "bee", 12)
    (tmp_path / "set" / "ant").symlink_to(tmp_path / "elsewhere" / "ant")
    (tmp_path / "set" / "bee" / "round").symlink_to(tmp_path / "set")
    data = load(tmp_path / "set")
    assert data.class_names == ("ant", "bee")
    assert images_in(data) == 24, "a link back to a folder above it adds nothing"
    (tmp_path / "linked").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "set" / name)
    assert load(tmp_path / "linked").class_names == ("ant", "bee")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("Train", "Val", "Test"), ("training", "dev", "testing"), ("train2017", "valid", "test_images")],
)
def test_splits_by_the_names_that_people_give_them(
    tmp_path: Path, train: str, validation: str, test: str
) -> None:
    for split, count in ((train, 6), (validation, 2), (test, 3)):
        for name in ("ant", "bee"):
            write_images(tmp_path / split / name, count)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 6)
    assert data.class_names == ("ant", "bee")
    write_images(tmp_path / ("TRAINING" if train != "training" else "train") / "ant", 2)
    with pytest.raises(DataError, match=r"are both the split train; keep one of them"):
        load(tmp_path)


def test_a_test_split_beside_classes_does_not_leak_into_training(tmp_path: Path) -> None:
    for folder in ("ant", "bee", "test/ant", "test/bee"):
        write_images(tmp_path / folder, 12)
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert (len(data.train) + len(data.validation), len(data.test)) == (24, 24)


def test_splits_below_a_folder_do_not_become_one_class(tmp_path: Path) -> None:
    """The folder above the one that was meant, or a folder a class with splits inside."""
    for folder in ("set/train/ant", "set/train/bee", "set/test/ant", "set/test/bee"):
        write_images(tmp_path / folder, 6)
    for labels in (None, "none"):
        with pytest.raises(DataError, match=r"set holds the splits test, train .*; give .*set itself"):
            load(tmp_path, label_column=labels)
    assert len(load(tmp_path / "set").test) == 12
    (tmp_path / "set" / "test").rename(tmp_path / "set" / "tank")
    assert load(tmp_path, label_column="none").class_names == ()


def test_names_of_splits() -> None:
    assert [split_named(name) for name in ("TRAIN", "test-set", "valid 2", "val")] == [
        *("train", "test", "validation", "validation"),
    ]
    assert [split_named(name) for name in ("tester", "strain", "test tube", "trains", "evaluation")] == [
        None
    ] * 5


def test_what_tools_leave_is_no_class_and_said(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write_images(tmp_path / name, 12)
    (tmp_path / "ant" / "00.png").rename(tmp_path / "ant" / "00.jfif")
    for junk in (".ipynb_checkpoints", "__MACOSX/ant"):
        write_images(tmp_path / junk, 2)
    (tmp_path / "ant" / "._01.png").write_bytes(b"Mac OS X")
    (tmp_path / "ant" / "notes.txt").write_text("mine")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "cat").mkdir()
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert images_in(data) == 24
    said = data.describe()
    assert "4 entries of tools (._01.png, .ipynb_checkpoints, Thumbs.db, __MACOSX)" in said
    assert "1 files that are no images by their suffix (.txt)" in said
    assert "1 folders without images (cat)" in said


def test_what_lies_beside_the_splits_is_said(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "ant", 20)
    write_images(tmp_path / "unsorted", 3)
    assert "left out: 1 entries beside the splits (unsorted)" in load(tmp_path).describe()


def test_without_labels_on_request(tmp_path: Path) -> None:
    """Labels that refuse the data otherwise: an unlabelled test split, and classes that are not trained."""
    for name in ("train/ant", "train/bee", "test"):
        write_images(tmp_path / name, 12)
    with pytest.raises(DataError, match=r"outside the class folders .*--label-column none"):
        load(tmp_path)
    data = load(tmp_path, label_column="none")
    assert (data.class_names, len(data.test)) == ((), 12)
    assert data.train.batch_labels([0]).tolist() == [-1]
    assert "no labels" in data.describe()


@pytest.mark.parametrize(
    ("column", "train", "test"),
    [("label", 0, -1), ("label", "riding", "a man on a horse"), ("labels", [0], [0, 1])],
    ids=["unlabelled-test", "captions", "several"],
)
def test_labels_of_other_tasks_are_left_out_on_request(
    tmp_path: Path, column: str, train: object, test: object
) -> None:
    import datasets

    write_images(tmp_path / "table" / "files", 24)
    files = sorted(str(path) for path in (tmp_path / "table" / "files").glob("*.png"))
    for split, images, label in (("train", files[:12], train), ("test", files[12:], test)):
        table = datasets.Dataset.from_dict({"image": images, column: [label] * 12})
        table = table.cast_column("image", datasets.Image())
        table.to_parquet(str(tmp_path / "table" / f"{split}.parquet"))
    cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match="--label-column none"):
        load(tmp_path / "table", cache_dir=cache)
    assert load(tmp_path / "table", cache_dir=cache, label_column="none").class_names == ()


def test_none_on_the_command_line_leaves_labels_out(monkeypatch) -> None:
    seen: list[DataConfig] = []
    monkeypatch.setattr("models.training.autoencoder.train", lambda config, **_: seen.append(config))
    flags = ["--label-column", "none", "--image-column", "none", "--subset", "plain_text"]
    assert main(["train", *flags]) == 0
    assert (seen[0].label_column, seen[0].image_column, seen[0].subset) == ("none", None, "plain_text")


# One entry for the orientation, and one that Pillow reads but cannot write again while it turns the image.
_EXIF = b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0%s\0\0\0\0\0\0\0\0"
BROKEN_EXIF = {
    "TypeError": _EXIF % b"\x01\x1a\0\x07\0\0\0\x01\0\0\0&",
    "struct.error": _EXIF % b"\x01\x01\0\x02\0\0\0\x01\0\0\0\0",
    "AttributeError": _EXIF % b"\x01\r\0\x0c\0\0\0\x01\0\0\0\0",
}


@pytest.mark.parametrize("kind", [*BROKEN_EXIF, "dimensions", "header", "truncated", "text", "decoder"])
def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, kind: str, monkeypatch) -> None:
    """One error with the file and what to do."""
    write_images(tmp_path, 12)
    bad = tmp_path / "03.png"
    content = bad.read_bytes()
    remedy = "replace or remove it"
    if kind in BROKEN_EXIF:
        bad.unlink()
        bad, remedy = tmp_path / "03.jpg", "save it again without EXIF data"
        Image.new("RGB", (10, 8)).save(bad, exif=b"Exif\0\0" + BROKEN_EXIF[kind])
    elif kind == "dimensions":
        header = b"IHDR" + struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
        bad.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    elif kind == "decoder":
        original = Image.open

        def strange(file: io.BytesIO) -> Image.Image:
            if file.getvalue() == content:
                raise KeyError(0)
            return original(file)

        monkeypatch.setattr(Image, "open", strange)
    else:
        bad.write_bytes({"header": content[:20], "truncated": content[:-40], "text": b"no image"}[kind])
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert f"{bad} cannot be read as an image (" in str(caught.value)
    assert str(caught.value).endswith(f"; {remedy}")


def test_a_digest_changes_with_images_and_labels_alone(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write_images(tmp_path / "set" / name, 12)
    first = load(tmp_path / "set", stream=True).digest()
    assert load(tmp_path / "set", stream=True).digest() == first
    shutil.move(tmp_path / "set" / "ant" / "00.png", tmp_path / "set" / "bee" / "90.png")
    shutil.move(tmp_path / "set" / "bee" / "00.png", tmp_path / "set" / "ant" / "00.png")
    moved = load(tmp_path / "set", stream=True).digest()
    assert moved != first, "as many images, other labels"
    stat = (tmp_path / "set" / "ant" / "01.png").stat()
    os.utime(tmp_path / "set" / "ant" / "01.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load(tmp_path / "set", stream=True).digest() == moved, "a file was written again as it was"
    shutil.copy(tmp_path / "set" / "ant" / "02.png", tmp_path / "set" / "ant" / "01.png")
    assert load(tmp_path / "set", stream=True).digest() != moved, "another image under the same name"
