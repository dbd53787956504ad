"""Tables of labels as spreadsheets write them, parquet as the hub lays it out, names that lead nowhere."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from data_support import kaokore, load, write_images
from tqdm import tqdm

from models.data import DataConfig, DataError, load_data
from models.runs.config import TrainConfig


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";").replace("\n", "\r\n"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace(",", ", ").replace("image", " image "),
        lambda text: text.replace("\n", "\r"),
        lambda text: text + ",,,\n\n",
        lambda text: text.replace(",0,", ",0.0,").replace(",1,", ",1.00,"),
        lambda text: "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.split()),
        lambda text: text.encode("utf-16"),
    ],
    ids=["mark", "semicolons", "tabs", "spaces", "returns", "empty-rows", "decimals", "quotes", "utf-16"],
)
def test_tables_of_labels_as_spreadsheets_write_them(tmp_path: Path, change) -> None:
    folder = kaokore(tmp_path)
    truth = load(folder)
    changed = change((folder / "labels.csv").read_text())
    (folder / "labels.csv").write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    data = load(folder)
    assert data.train.labels.tolist() == truth.train.labels.tolist()
    assert data.class_names == truth.class_names


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    folder = kaokore(tmp_path)
    (folder / "labels.csv").write_bytes((folder / "labels.csv").read_bytes() + b"\xe9t\xe9\n")
    with pytest.raises(DataError, match=r"labels.csv is not UTF-8 .*; save the table as CSV in UTF-8"):
        load(folder)


def write_parquet(folder: Path, files: list[Path]) -> None:
    """Structs of bytes and path, without any word of Hugging Face in the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(
        pa.table({"picture": images, "label": [0, 1] * (len(files) // 2)}), folder / "0000.parquet"
    )


@pytest.mark.parametrize("name", ["plain", "[a] b", "a*b?", "x::y", "#1 50%", "été"])
def test_parquet_as_the_hubs_converter_lays_it_out(tmp_path: Path, name: str) -> None:
    write_images(tmp_path / "files", 24)
    files = sorted((tmp_path / "files").glob("*.png"))
    cache = str(tmp_path / "cache")
    for folder in (tmp_path / name / "flat", tmp_path / name / "deep" / "default"):
        write_parquet(folder / "train", files[:12])
        write_parquet(folder / "test", files[12:])
    for folder in (tmp_path / name / "flat", tmp_path / name / "deep"):
        data = load(folder, cache_dir=cache)
        assert (len(data.train) + len(data.validation), len(data.test)) == (12, 12)
        assert data.settings["image_column"] == "picture"
    write_parquet(tmp_path / name / "deep" / "other" / "train", files)
    with pytest.raises(DataError, match=r"subset of .* is None; accepted: default, other \(--subset\)"):
        load(tmp_path / name / "deep", cache_dir=cache)
    data = load(tmp_path / name / "deep", cache_dir=cache, subset="other")
    assert len(data.train) + len(data.validation) + len(data.test) == 24


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list of what was looked for in the network, or waited for, each without success.

    Not by threads that other tests have left.
    """
    asked: list[object] = []
    others = set(threading.enumerate()) - {threading.current_thread()}
    getaddrinfo, connect, sleep = socket.getaddrinfo, socket.socket.connect, time.sleep

    def unreachable(original: Callable[..., object], *arguments: object, **options: object) -> object:
        if threading.current_thread() in others:
            return original(*arguments, **options)
        asked.append(arguments)
        raise OSError("no network")

    def at_once(seconds: float) -> None:
        (sleep if threading.current_thread() in others else asked.append)(seconds)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: unreachable(getaddrinfo, *a, **o))
    monkeypatch.setattr(socket.socket, "connect", lambda *a: unreachable(connect, *a))
    monkeypatch.setattr(time, "sleep", at_once)
    return asked


def test_a_mistyped_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch, no_network) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data is data/mnits, which does not exist; data holds .*: mnist"):
        load("data/mnits")
    assert no_network == []


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch, no_network) -> None:
    import datasets
    import huggingface_hub

    asked: list[str] = []

    def unreachable(self: object, name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    offline = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(DataError, match=r"could not be loaded from the Hugging Face hub"):
        load("no-such-owner/data-set")
    assert asked == ["no-such-owner/data-set"]
    assert no_network == []
    assert offline == datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("large", [False, True], ids=["binary", "large_binary"])
def test_images_as_plain_bytes(tmp_path: Path, large: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_images(tmp_path / "files", 24)
    files = sorted((tmp_path / "files").glob("*.png"))
    kind = pa.large_binary() if large else pa.binary()
    content = pa.array([file.read_bytes() for file in files], type=kind)
    (tmp_path / "data").mkdir()
    table = pa.table({"jpg": content, "label": [0, 1] * 12})
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    data = load(tmp_path / "data", cache_dir=str(tmp_path / "cache"))
    assert data.settings["image_column"] == "jpg"
    assert (data.size, data.channels, data.class_names) == ((8, 10), 3, ("0", "1"))
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 24
    named = load(tmp_path / "files")
    assert {one.tobytes() for one in data.train.hashes} <= {
        one.tobytes() for split in (named.train, named.validation, named.test) for one in split.hashes
    }
    broken = table.set_column(0, "jpg", pa.array([b"no picture %d" % row for row in range(24)], type=kind))
    (tmp_path / "other").mkdir()
    pq.write_table(broken, tmp_path / "other" / "train.parquet")
    with pytest.raises(DataError, match=r"the image in row 0 of .* cannot be read as an image"):
        load(tmp_path / "other", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("progress", [True, False])
def test_bars_of_libraries_are_shown_with_ours_alone(tmp_path: Path, progress: bool, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    write_images(tmp_path / "images", 12)
    images = [{"bytes": file.read_bytes(), "path": None} for file in sorted((tmp_path / "images").iterdir())]
    table = datasets.Dataset.from_dict({"image": images})
    table.to_parquet(str(tmp_path / "data" / "train.parquet"))
    shown = []
    monkeypatch.setattr(
        "datasets.builder.hf_tqdm",
        lambda *given, **how: (shown.append(not datasets.are_progress_bars_disabled()), tqdm(disable=True))[
            1
        ],
    )
    config = DataConfig(data=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    load_data(config, progress=progress)
    assert shown == [progress]
    assert not datasets.are_progress_bars_disabled()


def test_settings_that_would_change_nothing_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 12)
    said = f"subset is 'zz', but {tmp_path} has no subsets; leave it out, or give none"
    with pytest.raises(DataError, match=re.escape(said)):
        load(tmp_path, subset="zz")
    with pytest.raises(DataError, match="subset is 'zz', but digits has no subsets"):
        load("digits", subset="zz")
    for name, value, message in (
        ("split_seed", 2**64, "split_seed is 18446744073709551616; accepted: an integer below 2"),
        ("split_seed", -(2**63) - 1, "accepted: an integer of at least -9223372036854775808"),
        ("cache_gb", -0.5, "cache_gb is -0.5; accepted: a finite number of at least 0"),
        ("cache_gb", float("nan"), "cache_gb is nan; accepted: a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            load("digits", **{name: value})
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            TrainConfig(**{name: value})
    assert not load("digits", limit=20, cache_gb=0.0).train.cached
    flag = TrainConfig.from_mapping({"split_seed": str(2**53 + 1)}, "flags")
    assert flag.split_seed == 2**53 + 1
