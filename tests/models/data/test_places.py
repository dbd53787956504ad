"""Which files are read: what a table from anywhere may name, and what links in folders may lead to."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from data_support import kaokore, load, write_images

from models.data import DataError

ROOT = Path(__file__).parents[3]


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


def test_a_full_cache_is_named_and_not_the_data(tmp_path: Path) -> None:
    """A file may not grow beyond 2 kB in this process, as on a full disk or at the end of a quota."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_images(tmp_path / "files", 24)
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in (tmp_path / "files").iterdir()]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": images * 8}), tmp_path / "data" / "train-0.parquet")
    command = ["-m", "models", "train", "--data", str(tmp_path / "data"), "--cache-dir"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "cache"), "--runs", str(tmp_path / "runs")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{tmp_path / 'cache'}, where data are kept in converted form, cannot be written" in error
    assert "--cache-dir" in error
    assert "complete" not in error, "the tables are not to blame"
