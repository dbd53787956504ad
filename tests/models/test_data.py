"""Sources, splits, sizes, labels, and the errors that come before training starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import BatchLoader, DataConfig, DataError, ImageSplit, load_data, to_float, to_uint8

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 10), mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(str(folder)))
    for number in range(count):
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number:02d}.png")


def load(data: object, **settings: object):
    return load_data(DataConfig(data=str(data), **settings))


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_digits(digits) -> None:
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1258, 180, 359)
    assert (digits.size, digits.channels, len(digits.class_names)) == ((8, 8), 1, 10)
    everything = torch.cat([to_float(s.batch(range(len(s)))) for s in (digits.train,)])
    assert digits.variance == pytest.approx(everything.var(correction=0).item(), rel=1e-5)
    assert everything.min() == -0.5
    assert everything.max() == 0.5
    assert torch.equal(to_uint8(everything), digits.train.batch(range(len(digits.train))))


def test_splits_do_not_overlap_and_do_not_change(digits) -> None:
    from sklearn.datasets import load_digits

    parts = [digits.train, digits.validation, digits.test]
    rows = torch.cat([s.batch(range(len(s))).flatten(1) for s in parts]).numpy()
    truth = (load_digits().images * (255 / 16)).round().reshape(-1, 64)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, truth.astype(int).tolist()))
    again = load("digits")
    assert torch.equal(again.test.batch([0, 5]), digits.test.batch([0, 5]))
    other = load("digits", split_seed=1)
    assert not torch.equal(other.test.batch(range(9)), digits.test.batch(range(9)))


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
def test_image_folder_with_classes_and_splits(tmp_path: Path, cache_gb: float) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for name in ("ant", "bee"):
            write_images(tmp_path / split / name, count)
    data = load(tmp_path, cache_gb=cache_gb)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 6)
    assert data.class_names == ("ant", "bee")
    assert data.train.cached == (cache_gb > 0)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6
    batches = list(BatchLoader(data.train, 5))
    assert [tuple(images.shape) for images, _ in batches] == [(5, 3, 8, 10), (5, 3, 8, 10), (2, 3, 8, 10)]
    truth = np.asarray(Image.open(tmp_path / "train" / "bee" / "05.png"))
    assert torch.equal(batches[-1][0][-1], torch.from_numpy(truth.copy()).permute(2, 0, 1))
    assert data.label_of("bee") == 1
    with pytest.raises(DataError, match=r"no class 'cat'; its classes are: ant, bee"):
        data.label_of("cat")


def test_resize_crop_and_grey(tmp_path: Path) -> None:
    half = np.zeros((20, 40, 3), dtype=np.uint8)
    half[:, 20:] = 255
    (tmp_path / "a").mkdir()
    for number in range(10):
        Image.fromarray(half).save(tmp_path / "a" / f"{number}.png")
    data = load(tmp_path, size="10x10", channels=1)
    image = data.train.batch([0])[0, 0]
    assert image.shape == (10, 10)
    assert image[:, :3].max() < 20, "the crop is centred, so its left is black"
    assert image[:, 7:].min() > 235


def test_unlabelled_images_and_parquet(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 12, mode="L")
    data = load(tmp_path / "flat")
    assert data.class_names == ()
    assert data.channels == 1
    assert data.train.batch_labels([0, 1]).tolist() == [-1, -1]

    import datasets

    (tmp_path / "parquet").mkdir()
    files = [str(path) for path in sorted((tmp_path / "flat").glob("*.png"))]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"picture": files, "kind": ["x", "y"] * 6}, features=features)
    table.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    found = load(tmp_path / "parquet", label_column="kind", cache_dir=str(tmp_path / "cache"))
    assert found.class_names == ("x", "y")
    with pytest.raises(DataError, match=r"no image column 'image'; its columns are picture, kind"):
        load(tmp_path / "parquet", image_column="image", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="no column 'colour' for labels"):
        load(tmp_path / "parquet", label_column="colour", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "parquet" / "test.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match=r"parquet files of .* could not be read"):
        load(tmp_path / "parquet", cache_dir=str(tmp_path / "cache"))


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


def test_kaokore_layout(tmp_path: Path) -> None:
    folder = kaokore(tmp_path)
    data = load(folder)
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 4, 4)
    assert data.class_names == ("noble", "warrior", "incarnation", "commoner")
    assert data.train.labels.tolist() == [0, 3, 2, 1]
    assert load(folder, label_column="gender").class_names == ("male", "female")
    labels = folder / "labels.csv"
    text = labels.read_text()
    labels.write_text(text.replace("00000004.jpg,0,0,dev", "00000004.jpg,0,7,dev"))
    with pytest.raises(DataError, match=r"labels.csv line 6: unknown status '7'"):
        load(folder)
    labels.write_text(text)
    (folder / "images_256" / "00000002.jpg").unlink()
    with pytest.raises(DataError, match=r"00000002.jpg is missing, as are 0 other.*rois-codh"):
        load(folder)


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
    with pytest.raises(DataError, match=r"zz.png cannot be read as an image"):
        load(tmp_path, cache_gb=cache_gb)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "/no/such/folder"}, "/no/such/folder does not exist; give an existing folder"),
        ({"data": "./nowhere"}, "nowhere does not exist"),
        ({"data": __file__}, "is a file; give the folder"),
        ({"data": str(Path(__file__).parent)}, "holds no images, no parquet files"),
        ({"size": "8by8"}, "size must be a number such as 64"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"validation": 0.7}, "validation must be between 0 and 0.5, got 0.7"),
        ({"label_column": "colour"}, "no column 'colour' for labels"),
    ],
)
def test_mistakes(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(**settings))


def test_hub_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'no-such/data-set' could not be loaded .*check the id"):
        load("no-such/data-set")


class Numbers:
    """A split of numbers, to see which rows a loader asks for."""

    def __init__(self, count: int, cached: bool) -> None:
        self.count, self.cached = count, cached

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    def batch_labels(self, rows: torch.Tensor) -> torch.Tensor:
        return -rows


def rows_of(loader: BatchLoader) -> list[list[int]]:
    return [images.tolist() for images, _ in loader]


@pytest.mark.parametrize("cached", [True, False])
def test_loader_resumes_with_the_next_batch(cached: bool) -> None:
    whole = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    epochs = [rows_of(whole) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert len({row for batch in epochs[0] for row in batch}) == 20, "the last three do not fill a batch"
    first = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    rows_of(first)
    batches = iter(first)
    seen = [next(batches)[0].tolist() for _ in range(2)]
    state = first.state_dict()
    second = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    second.load_state_dict(state)
    assert seen + rows_of(second) == epochs[1]
    assert rows_of(second) == epochs[2]
    done = BatchLoader(Numbers(23, cached), 4, shuffle=True, seed=3)
    done.load_state_dict(whole.state_dict())
    assert rows_of(done) == rows_of(whole), "saved at the end of an epoch, it starts the next one"


def test_loader_shares_images_between_processes() -> None:
    parts = [rows_of(BatchLoader(Numbers(23, True), 3, shuffle=True, rank=r, world=2)) for r in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    rows = [row for part in parts for batch in part for row in batch]
    assert len(set(rows)) == len(rows) == 18
    parts = [rows_of(BatchLoader(Numbers(23, True), 3, rank=r, world=2)) for r in range(2)]
    assert sorted(row for part in parts for batch in part for row in batch) == list(range(23))
    with pytest.raises(ValueError, match="only 3 images; choose a smaller batch_size"):
        BatchLoader(Numbers(3, True), 2, shuffle=True, world=2)


@pytest.mark.parametrize(
    ("name", "size", "channels", "first"), [("mnist", (28, 28), 1, "0"), ("cifar10", (32, 32), 3, "airplane")]
)
def test_shared_parquet_data(
    tmp_path: Path, name: str, size: tuple[int, int], channels: int, first: str
) -> None:
    if not (SHARED / name / "train.parquet").is_file():
        pytest.skip(f"{SHARED / name} is not on this machine")
    data = load(SHARED / name, limit=200, cache_dir=str(tmp_path))
    assert (data.size, data.channels, data.class_names[0]) == (size, channels, first)
    assert len(data.class_names) == 10
    assert isinstance(data.train, ImageSplit)
    assert 0.05 < data.variance < 0.12
