"""Splits by the content of the images, what runs of before had, and the variance of all pixels."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import load, write_images
from PIL import Image
from run_support import TINY, write_run

import models.data.images as images
import models.data.load as loading
from models.cli import main
from models.data import DataConfig, DataError, ImageData, load_data
from models.data.images import ImageSplit
from models.runs.config import TrainConfig
from models.runs.open import open_run

SPLITS = ("train", "validation", "test")
TRAIN = ["--size", "8", "--steps", "2", "--batch-size", "8", "--hidden", "8", "--downscale", "2"]
TRAIN += ["--no-progress", "--accelerator", "cpu", "--pictures-every", "0", "--embedding-dim", "4"]


def contents(data: ImageData) -> dict[str, set[bytes]]:
    return {name: {image.numpy().tobytes() for image in data.split(name).batch(range(len(data.split(name))))}
            for name in SPLITS}  # fmt: skip


def test_one_more_image_moves_no_other(tmp_path: Path) -> None:
    write_images(tmp_path, 200)
    before = contents(load(tmp_path))
    assert [len(before[name]) for name in SPLITS] == pytest.approx([140, 20, 40], abs=20)
    write_images(tmp_path / "one", 1)
    (tmp_path / "one" / "00.png").rename(tmp_path / "000.png")  # before all others
    (tmp_path / "one").rmdir()
    after = contents(load(tmp_path))
    assert all(before[name] <= after[name] for name in SPLITS)
    assert sum(len(after[name]) - len(before[name]) for name in SPLITS) == 1


def test_equal_images_fall_together(tmp_path: Path) -> None:
    write_images(tmp_path, 60)
    for number in range(60):
        shutil.copy(tmp_path / f"{number:02d}.png", tmp_path / f"copy{59 - number:02d}.png")
    data = load(tmp_path)
    held = contents(data)
    assert sum(len(images) for images in held.values()) == 60, "no image is in two splits"
    assert sum(len(data.split(name)) for name in SPLITS) == 120
    assert "two splits" not in data.describe()


def test_the_rule_is_the_written_one() -> None:
    from sklearn.datasets import load_digits

    names: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, grey in enumerate((load_digits().images * (255 / 16)).round().astype("uint8")):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, format="PNG")
        content = hashlib.sha256(buffer.getvalue()).hexdigest()
        number = int.from_bytes(hashlib.sha256(f"7:{content}".encode()).digest()[:8], "big") / 2**64
        names["test" if number < 0.2 else "validation" if number < 0.3 else "train"].append(row)
    data = load_data(DataConfig(data="digits", split_seed=7))
    pixels = torch.from_numpy((load_digits().images * (255 / 16)).round()).to(torch.uint8)
    for name, rows in names.items():
        assert torch.equal(data.split(name).batch(range(len(rows))).squeeze(1), pixels[rows]), name


def test_limit_takes_the_lowest_numbers(tmp_path: Path) -> None:
    write_images(tmp_path, 100)
    first = contents(load(tmp_path, limit=10))
    assert [len(first[name]) for name in SPLITS][::2] == [10, 10]
    write_images(tmp_path / "x", 1)
    (tmp_path / "x" / "00.png").rename(tmp_path / "new.png")
    (tmp_path / "x").rmdir()
    second = contents(load(tmp_path, limit=10))
    assert all(len(first[name] - second[name]) <= 1 for name in SPLITS)


@pytest.mark.parametrize("missing", [("test", "validation"), ("validation",)])
def test_no_split_of_few_images_is_empty(tmp_path: Path, missing: tuple[str, ...]) -> None:
    for name in ("train", *({"test", "validation"} - set(missing))):
        write_images(tmp_path / name, 3)
    sizes = [len(load(tmp_path).split(name)) for name in SPLITS]
    assert sizes == ([1, 1, 1] if len(missing) == 2 else [2, 1, 3])
    for number in (1, 2):
        (tmp_path / "train" / f"{number:02d}.png").unlink()
    with pytest.raises(DataError, match="has only 1 training images, too few to split"):
        load(tmp_path)


def test_runs_of_before_keep_their_split_and_number(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", likelihood="mse", limit=60)
    lines = (run / "config.yaml").read_text().splitlines()
    (run / "config.yaml").write_text("\n".join(line for line in lines if "split_by" not in line))
    _, data = open_run(run)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    test = order[:359].sort().values
    chosen = torch.randperm(359, generator=torch.Generator().manual_seed(0))[:60].sort().values
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy((load_digits().images * (255 / 16)).round()).to(torch.uint8)
    assert torch.equal(data.test.batch(range(60)).squeeze(1), pixels[test[chosen]])
    assert "split_by" not in data.settings, "as codes that were written then have it"


def test_equal_images_in_two_given_splits_are_counted(tmp_path: Path) -> None:
    for name, count in (("train", 8), ("val", 4), ("test", 6)):
        write_images(tmp_path / name, count)
    shutil.copy(tmp_path / "train" / "03.png", tmp_path / "test" / "05.png")
    shutil.copy(tmp_path / "train" / "03.png", tmp_path / "test" / "04.png")
    shutil.copy(tmp_path / "train" / "01.png", tmp_path / "val" / "00.png")
    said = load(tmp_path).describe()
    assert "equal images in two splits: 1 of validation are in train too, 2 of test are in train too" in said


def test_commands_say_when_the_data_have_changed(tmp_path: Path, capsys) -> None:
    write_images(tmp_path / "set", 60)
    run = str(tmp_path / "runs" / "run")
    train = ["train", "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "set"), *TRAIN]
    assert main(train) == 0
    record = json.loads((tmp_path / "runs" / "run" / "data.json").read_text())
    assert record["variance"] == pytest.approx(load(tmp_path / "set", size="8").variance)
    for file in (tmp_path / "set").iterdir():
        os.utime(file, (0, 0))
    commands = [["evaluate", run], ["encode", run, "--overwrite"], ["reconstruct", run], ["export", run]]
    commands += [[*train, "--resume"]]
    capsys.readouterr()
    for command in commands:
        assert main([*command, *([] if command[0] in ("train", "export") else ["--device", "cpu"])]) == 0
        assert "have changed" not in capsys.readouterr().err, "other times are no other images"
    figures = json.loads(Path(run, "evaluation-test.json").read_text())
    shutil.rmtree(Path(run, "model"))
    write_images(tmp_path / "new", 1)
    (tmp_path / "new" / "00.png").rename(tmp_path / "set" / "new.png")
    for command in [commands[-1], *commands[:-1]]:
        assert main([*command, *([] if command[0] in ("train", "export") else ["--device", "cpu"])]) == 0
        said = capsys.readouterr().err
        assert f"of {tmp_path / 'set'} have changed since {run} was trained:" in said, command
        assert " images and has " in said
    assert json.loads(Path(run, "evaluation-test.json").read_text())["of"]["digest"] != ""
    assert len(figures["of"]["digest"]) == 64
    other = ["evaluate", run, "--data", str(tmp_path / "new"), "--out", str(tmp_path / "other.json")]
    write_images(tmp_path / "new", 30)
    assert main([*other, "--device", "cpu"]) == 0
    assert "have changed" not in capsys.readouterr().err, "these were asked for"


def many(folder: Path, count: int) -> np.ndarray:
    """A table of that many grey images of 2 x 2, the later ones brighter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 128, (count, 2, 2)) + np.linspace(0, 127, count)[:, None, None]
    images = []
    for image in pixels.astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="BMP")
        images.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir()
    pq.write_table(pa.table({"image": images}), folder / "train-0.parquet")
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
def test_the_variance_is_that_of_all_training_pixels(tmp_path: Path, monkeypatch, cache_gb: float) -> None:
    monkeypatch.setattr(loading, "SAMPLED", 1_000)
    monkeypatch.setattr(images, "AT_ONCE", 4 * 200)
    many(tmp_path / "set", 1_500)
    read: list[int] = []
    original = ImageSplit.batch
    monkeypatch.setattr(
        ImageSplit, "batch", lambda self, rows: read.append(len(rows)) or original(self, rows)
    )
    settings = {"cache_dir": str(tmp_path / "cache"), "cache_gb": cache_gb}
    data = load(tmp_path / "set", **settings)
    assert len(data.train) > 1_000
    everything = original(data.train, range(len(data.train))).double() / 255 - 0.5
    assert data.variance == pytest.approx(everything.var(correction=0).item(), rel=1e-12)
    assert max(read, default=0) <= 200, "a few images at a time"
    before = load(tmp_path / "set", split_by="number", **settings)
    rows = torch.linspace(0, len(before.train) - 1, 1_000).long()
    some = original(before.train, rows).double() / 255 - 0.5
    assert before.variance == pytest.approx(some.var(correction=0).item(), rel=1e-12)
    assert before.variance != pytest.approx(data.variance, rel=1e-6)


def test_a_command_takes_the_stored_variance_and_decodes_no_training_image(
    tmp_path: Path, monkeypatch
) -> None:
    write_images(tmp_path / "set", 60)
    train = ["train", "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "set"), *TRAIN]
    assert main(train) == 0
    decoded: list[int] = []
    original = ImageSplit._decode
    monkeypatch.setattr(
        ImageSplit, "_decode", lambda self, rows: decoded.append(len(list(rows))) or original(self, rows)
    )
    assert main(["evaluate", str(tmp_path / "runs" / "run"), "--device", "cpu"]) == 0
    assert sum(decoded) == len(load(tmp_path / "set", size="8", stream=True).test)


def test_the_settings_of_a_run_say_by_which_rule(tmp_path: Path) -> None:
    config = TrainConfig(runs=str(tmp_path), **TINY)
    config.save(config.layout.config)
    assert "split_by: content\n" in config.layout.config.read_text()
    assert TrainConfig.of_run(config.layout.config) == config
    with pytest.raises(ValueError, match="split_by is 'row'; accepted: 'content', 'number'"):
        load("digits", split_by="row")
