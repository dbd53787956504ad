"""Decoded data on disk: decoded once, shared by splits, sizes apart, and never trusted when damaged."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import DataConfig, cache, load_data
from models.data.cache import Decoded, DecodedCache
from models.data.kinds import Images


def painted(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


class Decoder:
    """Decodes item ``i`` into an array full of ``i``, and remembers which it decoded."""

    def __init__(self, numbers: Sequence[int], shape: tuple[int, ...]) -> None:
        self.numbers, self.shape = list(numbers), shape
        self.decoded: list[int] = []
        digests = [hashlib.sha256(str(number).encode()).digest() for number in self.numbers]
        self.hashes = np.array(digests, dtype="S32")

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        chosen = [self.numbers[row] for row in rows]
        self.decoded += chosen
        ones = np.ones((len(chosen), *self.shape), np.float32)
        return ones * np.array(chosen, np.float32).reshape(-1, *[1] * len(self.shape))


def numbers_of(decoded: Decoded, count: int) -> list[int]:
    return decoded.take(range(count)).reshape(count, -1)[:, 0].astype(int).tolist()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (1, 2, 3, 4)], ids=["sound", "image", "volume"])
def test_what_is_there_is_not_decoded_again(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store = DecodedCache(tmp_path, {"data": "a"}, shape, np.float32)
    first = Decoder([3, 1, 4, 1, 5], shape)
    ready: list[int] = []
    filled = store.fill(first.hashes, first, ready.append)
    assert first.decoded == [3, 1, 4, 5], "equal files are decoded once"
    assert sum(ready) == 5
    assert numbers_of(filled, 5) == [3, 1, 4, 1, 5]
    assert filled.take([2]).shape == (1, *shape)
    assert filled.take([]).shape == (0, *shape)
    again = Decoder([5, 9, 3, 2], shape)
    assert numbers_of(store.fill(again.hashes, again), 4) == [5, 9, 3, 2]
    assert again.decoded == [9, 2], "another split needs two more"
    last = Decoder([2, 1, 9, 3], shape)
    found = DecodedCache(tmp_path, {"data": "a"}, shape, np.float32).find(last.hashes)
    assert found is not None
    assert numbers_of(found, 4) == [2, 1, 9, 3]
    assert not found.in_memory


def test_other_forms_lie_apart(tmp_path: Path) -> None:
    decoder = Decoder(range(4), (2,))
    DecodedCache(tmp_path, {"data": "a"}, (2,), np.float32).fill(decoder.hashes, decoder)
    for form, shape, dtype in (
        ({"data": "b"}, (2,), "f4"),
        ({"data": "a"}, (3,), "f4"),
        ({"data": "a"}, (2,), "f8"),
    ):
        assert DecodedCache(tmp_path, form, shape, dtype).find(decoder.hashes) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "no_array"])
def test_a_damaged_file_is_decoded_again(tmp_path: Path, damage: str) -> None:
    store = DecodedCache(tmp_path, {}, (6,), np.float32)
    decoder = Decoder(range(10), (6,))
    store.fill(decoder.hashes, decoder)
    (file,) = (path for path in store.folder.glob("*.npy") if not path.name.endswith(".index.npy"))
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": content[:-8], "empty": b"", "no_array": b"x" * len(content)}[damage])
    assert store.find(decoder.hashes) is None
    decoder.decoded.clear()
    assert numbers_of(store.fill(decoder.hashes, decoder), 10) == list(range(10))
    assert decoder.decoded == list(range(10))


def test_an_item_that_cannot_be_decoded_leaves_nothing(tmp_path: Path) -> None:
    store = DecodedCache(tmp_path, {}, (2,), np.float32)
    hashes = Decoder(range(3), (2,)).hashes

    def broken(rows: Sequence[int]) -> np.ndarray:
        raise ValueError("no image")

    with pytest.raises(ValueError, match="no image"):
        store.fill(hashes, broken)
    assert [path.name for path in store.folder.iterdir()] == ["form.json"]


def test_where_nothing_can_be_written_all_is_kept_in_memory(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    store = DecodedCache(tmp_path / "file", {}, (2,), np.float32)
    decoder = Decoder([7, 8], (2,))
    decoded = store.fill(decoder.hashes, decoder)
    assert numbers_of(decoded, 2) == [7, 8]
    assert decoded.in_memory
    assert "cannot be written" in capsys.readouterr().err


def _fill(folder: Path, barrier, counts) -> None:
    decoder = Decoder(range(200), (64,))
    barrier.wait()
    decoded = DecodedCache(folder, {}, (64,), np.float32).fill(decoder.hashes, decoder)
    assert numbers_of(decoded, 200) == list(range(200))
    counts.put(len(decoder.decoded))


def test_of_several_processes_one_decodes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counts = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path, barrier, counts)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    assert sorted(counts.get(timeout=300) for _ in workers) == [0, 0, 200]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        path = tmp_path / "data" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        painted(number).save(path)
    return tmp_path / "data"


def test_images_are_decoded_once_for_a_data_set_and_size(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.data.load.WORTH_KEEPING", 0)
    decoded: list[int] = []
    original = Images.decode
    monkeypatch.setattr(Images, "decode", lambda self, *a: decoded.append(1) or original(self, *a))
    shared = {"data": str(folder), "cache_dir": str(tmp_path / "cache")}

    def load(stream: bool = False, **changes: object) -> np.ndarray:
        decoded.clear()
        data = load_data(DataConfig(**shared, **changes), stream=stream)
        return np.concatenate(
            [data.split(name).batch(range(len(data.split(name)))).numpy() for name in cache_splits]
        )

    cache_splits = ("train", "validation", "test")
    first = load(size="4")
    assert len(decoded) == 40
    assert np.array_equal(load(size="4"), first)
    assert not decoded
    load(size="4", split_seed=3, limit=5)
    assert not decoded, "other splits have the same images"
    assert np.array_equal(load(size="4", stream=True), first)
    assert np.array_equal(load(size="4", cache_gb=0.0), first)
    assert not decoded, "what is there is used without being asked to keep it"
    assert not np.array_equal(load(size="5", limit=40), first)
    assert len(decoded) == 40, "another size is another form"
    painted(99).save(folder / "0.png")
    load(size="4")
    assert len(decoded) == 1, "a file that has changed is decoded anew"
    shutil.rmtree(tmp_path / "cache" / "decoded")
    load(size="4")
    assert len(decoded) == 40


def test_small_data_leave_nothing(tmp_path: Path, folder: Path) -> None:
    data = load_data(DataConfig(data=str(folder), cache_dir=str(tmp_path / "cache")))
    assert data.train.cached
    assert not (tmp_path / "cache" / "decoded").exists()
    assert cache.WORTH_KEEPING > 40 * 3 * 64
