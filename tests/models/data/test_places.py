"""Which files are read: what a table from anywhere may name, and what links in folders may lead to."""

from __future__ import annotations

import os
from pathlib import Path

import preloaded
import pytest
from data_support import kaokore, load, write_images

from models.data import DataError


def write_paths(folder: Path, paths: list[str]) -> Path:
    """A parquet file whose images are paths without bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    none = pa.array([None] * len(paths), pa.binary())
    images = pa.StructArray.from_arrays([none, pa.array(paths)], ["bytes", "path"])
    pq.write_table(pa.table({"image": images}), folder / "train-0.parquet")
    return folder


def names(prefix: str = "") -> list[str]:
    return [f"{prefix}{number:02d}.png" for number in range(24)]


def test_files_inside_the_data_folder_are_read_from_wherever(tmp_path: Path, monkeypatch) -> None:
    write_images(tmp_path / "data" / "images", 24)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data" / "images")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for prefix in ("images/", "link/", f"{tmp_path}/data/images/", "images/../images/"):
        data = load(write_paths(tmp_path / "data", names(prefix)), cache_dir=str(tmp_path / "cache"))
        assert sum(map(len, (data.train, data.validation, data.test))) == 24


@pytest.mark.parametrize("kind", ["device", "outside", "above", "link", "pipe"])
def test_a_table_names_no_device_and_no_file_elsewhere(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "data", 24)
    write_images(tmp_path / "secret", 1)
    (tmp_path / "data" / "away.png").symlink_to(tmp_path / "secret" / "00.png")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    path, reason = {
        "device": ("/dev/zero", "lies outside"),
        "outside": (str(tmp_path / "secret" / "00.png"), "lies outside"),
        "above": ("../secret/00.png", "lies outside"),
        "link": ("away.png", "lies outside"),
        "pipe": ("pipe.png", "is no regular file"),
    }[kind]
    for paths in ([path, *names()[1:]], [*names()[1:], path]):
        write_paths(tmp_path / "data", paths)
        with pytest.raises(DataError, match=reason) as raised:
            load(tmp_path / "data", cache_dir=str(tmp_path / "cache"))
        assert path in str(raised.value)


def test_links_in_folders_lead_to_regular_files_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", 4)
    write_images(tmp_path / "data", 24)
    for number in range(4):
        (tmp_path / "data" / f"linked{number}.png").symlink_to(tmp_path / "elsewhere" / f"{number:02d}.png")
    (tmp_path / "data" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "data" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    data = load(tmp_path / "data")
    assert sum(map(len, (data.train, data.validation, data.test))) == 28
    said = "3 entries that are or lead to no regular file (gone.png, pipe.png, zero.png)"
    assert said in data.describe()


def test_a_table_of_labels_names_files_beside_it(tmp_path: Path) -> None:
    folder = kaokore(tmp_path)
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("00000003.jpg", "../images_256/00000003.jpg"))
    with pytest.raises(DataError, match=r"labels.csv line 5: image is '../images.*'; accepted: the name"):
        load(folder)


# What it says is kept in memory until it may be written.
FULL = """
import io, resource, runpy, sys
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
out, err = sys.stdout, sys.stderr
sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
try:
    runpy.run_module("models", run_name="__main__", alter_sys=True)
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out.write(sys.stdout.getvalue())
    err.write(sys.stderr.getvalue())
    sys.stdout, sys.stderr = out, err
"""


def test_a_full_cache_is_named_and_not_the_data(tmp_path: Path) -> None:
    """A file may not grow beyond 2 kB in this process, as on a full disk or at the end of a quota."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_images(tmp_path / "files", 24)
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in (tmp_path / "files").iterdir()]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": images * 8}), tmp_path / "data" / "train-0.parquet")
    flags = ["--data", str(tmp_path / "data"), "--cache-dir", str(tmp_path / "cache")]
    done = preloaded.run(["-c", FULL, "train", *flags, "--runs", str(tmp_path / "runs")], OMP_NUM_THREADS="1")
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{tmp_path / 'cache'}, where data are kept in converted form, cannot be written" in error
    assert "--cache-dir" in error
    assert "complete" not in error, "the tables are not to blame"


def tables(folder: Path, images: list[bytes], labels: list[str | None], rows: int = 16) -> Path:
    """A parquet file for so many rows each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for number, start in enumerate(range(0, max(1, len(images)), rows)):
        part = [{"bytes": image, "path": "x.png"} for image in images[start : start + rows]]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = {"image": pa.array(part, kind), "label": pa.array(labels[start : start + rows], pa.string())}
        pq.write_table(pa.table(table), folder / f"train-{number}.parquet")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> list[bytes]:
    write_images(tmp_path / "files", 24)
    return [file.read_bytes() for file in sorted((tmp_path / "files").iterdir())]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_cache_that_cannot_be_is_named_and_not_the_data(tmp_path: Path, images, place: str) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / place
    with pytest.raises(DataError) as caught:
        load(tables(tmp_path / "data", images, ["a"] * 24), cache_dir=str(cache))
    assert f"{cache}, where data are kept in converted form, cannot be written (" in str(caught.value)
    assert str(caught.value).endswith("or give another folder (--cache-dir)")
    assert "complete" not in str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("row", [5, 21])
def test_a_bad_row_of_a_table_is_told_by_its_place_there(tmp_path: Path, images, row: int, stream) -> None:
    images[row] = b"no image"
    folder = tables(tmp_path / "data", images, ["a"] * 24)
    file = folder / f"train-{row // 16}.parquet"

    def read() -> None:
        data = load(folder, cache_dir=str(tmp_path / "cache"), stream=stream, size="8", channels=3)
        for split in (data.train, data.validation, data.test):
            split.batch(range(len(split)))

    with pytest.raises(DataError) as caught:
        read()
    assert str(caught.value) == (
        f"the image in row {row % 16} of {file} (the first is row 0) cannot be read as an image (no known "
        f"format); replace or remove it"
    )


def test_a_row_without_a_label_is_told_by_its_place(tmp_path: Path, images) -> None:
    for number, row in enumerate((5, 21)):
        labels: list[str | None] = ["a"] * 24
        labels[row] = None
        folder = tables(tmp_path / str(number), images, labels)
        with pytest.raises(
            DataError, match=rf"row {row % 16} of {folder}/train-{number}.parquet .* label None"
        ):
            load(folder, cache_dir=str(tmp_path / "cache"))


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    folder = tables(tmp_path / "data", [], [])
    with pytest.raises(DataError, match=rf"{folder}/train-0.parquet is a table of 0 rows; remove it"):
        load(folder, cache_dir=str(tmp_path / "cache"))


def test_a_limit_that_leaves_a_class_out_is_named(tmp_path: Path, images) -> None:
    folder = tables(tmp_path / "data", images, ["a", "b", "c"] * 8)
    with pytest.raises(
        DataError, match=r"occurs in no training image of the 1 that limit 1 leaves; raise --lim"
    ):
        load(folder, cache_dir=str(tmp_path / "cache"), limit=1)
