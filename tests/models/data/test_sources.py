"""Sources, splits, sizes, labels, and the errors that come before training starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import kaokore, load, write_images
from PIL import Image

from models.data import BatchLoader, DataConfig, DataError, ImageSplit, load_data, to_float, to_uint8

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_digits(digits) -> None:
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1250, 179, 368)
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
    data = load(tmp_path, size="10x10", channels=1, split_by="number")
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
    (tmp_path / "flat").rename(tmp_path / "parquet" / "flat")
    files = [str(path) for path in sorted((tmp_path / "parquet" / "flat").glob("*.png"))]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"picture": files, "kind": ["x", "y"] * 6}, features=features)
    table.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    found = load(tmp_path / "parquet", label_column="kind", cache_dir=str(tmp_path / "cache"))
    assert found.class_names == ("x", "y")
    with pytest.raises(DataError, match=r"no column 'image' of .*; its columns are picture, kind"):
        load(tmp_path / "parquet", image_column="image", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="no column 'colour' for labels"):
        load(tmp_path / "parquet", label_column="colour", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "parquet" / "test.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(DataError, match=r"parquet files of .* could not be read"):
        load(tmp_path / "parquet", cache_dir=str(tmp_path / "cache"))


def test_parquet_as_in_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    import datasets

    write_images(tmp_path / "hub" / "files", 12)
    files: list[str | None] = [str(path) for path in sorted((tmp_path / "hub" / "files").glob("*.png"))]
    (tmp_path / "hub" / "data").mkdir(parents=True)

    def load_with(**columns: tuple[list[object], object]):
        features = datasets.Features(
            {"image": datasets.Image()} | {k: kind for k, (_, kind) in columns.items()}
        )
        values = {"image": files} | {name: entries for name, (entries, _) in columns.items()}
        table = datasets.Dataset.from_dict(values, features=features)
        table.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
        return load(tmp_path / "hub", cache_dir=str(tmp_path / "cache"))

    assert 2 * len(load_with().train) > 12
    text = datasets.Value("string")
    for values, kind, message in (
        (
            [["x", "y"]] * 12,
            datasets.List(text),
            r"has the label \['x', 'y'\] in column 'label', .*--label-col",
        ),
        (["x"] * 11 + [None], text, r"has the label None in column 'label', .*--label-column"),
        ([0, 1, -1] * 4, datasets.ClassLabel(2), r"has label -1 in column 'label', .*--label-column"),
    ):
        with pytest.raises(DataError, match=message):
            load_with(label=(values, kind))
    files[0] = None
    with pytest.raises(
        DataError, match=r"image in row 0 of .*parquet .* is missing \(null\); remove that row"
    ):
        load_with()
    table = datasets.Dataset.from_dict({"picture": [1.0] * 12, "kind": ["x"] * 12})
    table.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    with pytest.raises(DataError, match=r"no column of images.*; its columns are picture, kind; store one"):
        load(tmp_path / "hub", cache_dir=str(tmp_path / "cache"))


def test_limit_takes_images_of_every_class(tmp_path: Path) -> None:
    for name in "abcd":
        write_images(tmp_path / name, 60, size=(2, 2))
    counts = load(tmp_path, limit=40, stream=True).train.labels.bincount()
    assert counts.sum() == 40
    assert len(counts) == 4
    assert counts.min() >= 4
    labels = [
        load(tmp_path, limit=40, stream=True, split_seed=seed).train.labels.tolist() for seed in (0, 0, 1)
    ]
    assert labels[0] == labels[1] == sorted(labels[0]), "the same images, in their order"
    assert labels[0] != labels[2]


def test_only_a_test_folder_is_no_class(tmp_path: Path) -> None:
    write_images(tmp_path / "test", 12)
    with pytest.raises(DataError, match="has the splits test; one must be called train"):
        load(tmp_path)
    write_images(tmp_path / "exam", 12)
    assert load(tmp_path).class_names == ("exam", "test")


def test_splits_must_be_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.data import load as module
    from models.data.sources import SourceData, open_source

    write_images(tmp_path / "train" / "a", 12)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"split test of .* is empty"):
        load(tmp_path)
    write_images(tmp_path / "test" / "a", 2)
    splits = open_source(DataConfig(data=str(tmp_path))).splits
    splits["test"] = splits["test"].remove_columns("label")
    monkeypatch.setattr(module, "open_source", lambda _: SourceData(splits))
    with pytest.raises(DataError, match=r"split test of .* lacks the column 'label', train has it"):
        load(tmp_path)


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
    with pytest.raises(DataError, match=r"labels.csv line 6: status is '7'; accepted: 0 \(noble\)"):
        load(folder)
    labels.write_text(text)
    for short, line in (("00000004.jpg,0,0", 6), ("00000004.jpg", 6)):
        labels.write_text(text.replace("00000004.jpg,0,0,dev", short))
        with pytest.raises(
            DataError, match=rf"labels.csv line {line} ends before '(set|gender)'; complete it"
        ):
            load(folder)
    labels.write_text(text)
    (folder / "images_256" / "00000002.jpg").unlink()
    with pytest.raises(DataError, match=r"00000002.jpg is missing, as are 0 other.*rois-codh"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data": "/no/such/folder"},
            "/no/such/folder, which does not exist; accepted: an existing folder",
        ),
        ({"data": "./nowhere"}, "nowhere, which does not exist"),
        ({"data": ""}, "data is ''; accepted: a folder"),
        ({"data": "minst"}, "data is 'minst', and there is no such folder; accepted: .* OWNER/NAME"),
        ({"data": __file__}, "which is a file; accepted: the folder"),
        (
            {"data": str(Path(__file__).parent)},
            "a folder without images, sounds, volumes, parquet files or labels.csv",
        ),
        ({"size": "8by8"}, "size is '8by8'; accepted: a number such as 64"),
        ({"channels": 2}, "channels is 2; accepted: 1 for grey"),
        ({"channels": 0}, "channels is 0; accepted: 1 for grey"),
        ({"limit": 0}, "limit is 0; accepted: an integer of at least 1, none for"),
        ({"limit": -2}, "limit is -2; accepted: an integer of at least 1, none for"),
        ({"validation": 0.7}, "validation is 0.7; accepted: a share between 0 and 0.5"),
        ({"label_column": "colour"}, "no column 'colour' for labels"),
    ],
)
def test_mistakes(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(**settings))


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    for name in ("train/ant", "train/bee", "test/ant", "test/cat"):
        write_images(tmp_path / name, 12)
    with pytest.raises(DataError, match=r"test/cat/00.png is in test of class 'cat', of which there is"):
        load(tmp_path)


def test_hub_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError,
        match=r"no folder 'no-such/data-set', and the data set .* could not be loaded .*check the name",
    ):
        load("no-such/data-set")


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
