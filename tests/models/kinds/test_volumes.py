"""Volumes: what is read from files and tables, how values and sizes are fitted, and what is refused."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import load
from kinds_support import ball, write_volumes

from models.data import DataError, to_float
from models.data.kinds import Volumes
from models.data.kinds.volume import read_volume, scale_and_crop


def table_of(folder: Path, columns: dict[str, list[np.ndarray]], features: object = None) -> Path:
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: list(values) for name, values in columns.items()}
    if features is None:
        shape, dtype = columns["volume"][0].shape, str(columns["volume"][0].dtype)
        features = datasets.Features(dict.fromkeys(columns, datasets.Array3D(shape, dtype)))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return folder


def test_a_folder_of_arrays_is_found_by_looking(tmp_path: Path) -> None:
    data = load(write_volumes(tmp_path, size=(8, 6, 4)))
    assert data.size == (8, 6, 4)
    assert data.train.batch([0, 1]).shape == (2, 1, 8, 6, 4)
    assert data.train.batch([0]).dtype == torch.uint8
    assert "volumes of 8x6x4 voxels (1 channel); no labels" in data.describe()
    assert data.settings["kind"] == "volume"
    expected = {ball((8, 6, 4), number / 12).tobytes() for number in range(12)}
    rows = data.train.batch(range(len(data.train)))
    assert {row.numpy().tobytes() for row in rows} <= expected


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "decoded_on_the_way"])
def test_parquet_with_arrays_takes_the_volume_and_says_that_there_is_a_mask(
    tmp_path: Path, cache_gb: float
) -> None:
    volumes = [ball((4, 6, 8), number / 12) for number in range(12)]
    folder = table_of(tmp_path / "set", {"mask": [v // 128 for v in volumes], "volume": volumes})
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_gb": cache_gb}
    data = load(folder, **cache)
    assert data.train.batch([0]).shape == (1, 1, 4, 6, 8)
    assert data.train.batch([0]).max() > 1
    assert "left out: the volumes of column mask beside volume" in data.describe()
    assert load(folder, image_column="mask", **cache).train.batch([0]).max() == 1
    other = table_of(tmp_path / "two", {"volume": volumes, "image": volumes})
    with pytest.raises(DataError, match=r"several columns of .* \(volume, image\); choose one with --im"):
        load(other, **cache)


def test_nested_lists_without_a_schema_are_volumes(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "set").mkdir()
    lists = [ball((4, 4, 4), number / 12).tolist() for number in range(12)]
    kind = pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.uint8())))
    pyarrow.parquet.write_table(
        pyarrow.table({"scan": pyarrow.array(lists, kind)}), tmp_path / "set" / "train.parquet"
    )
    cache = {"cache_dir": str(tmp_path / "cache")}
    assert load(tmp_path / "set", **cache).size == (4, 4, 4)
    marks = [f"{number}".encode() for number in range(12)]
    for place, table in (
        ("marked", {"mark": marks, "scan": pyarrow.array(lists, kind)}),
        ("named", {"scan": pyarrow.array(lists, kind), "image": marks}),
    ):
        (tmp_path / place).mkdir()
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / place / "train.parquet")
        said = load(tmp_path / place, **cache).settings
        assert said["image_column"] == "scan", "bytes say less than lists"
        column = next(iter(set(table) - {"scan"}))
        for asked in ({"image_column": column}, {"kind": "image"}):
            with pytest.raises(DataError, match=r"the image in row 0 of .* cannot be read as an image"):
                load(tmp_path / place, **asked, **cache)
    lists[3][0] = lists[3][0][:2]
    pyarrow.parquet.write_table(
        pyarrow.table({"scan": pyarrow.array(lists, kind)}), tmp_path / "set" / "train.parquet"
    )
    with pytest.raises(
        DataError, match=r"volume in row 3 of .*train.parquet .* cannot be read as a volume .*equal rows"
    ):
        load(tmp_path / "set", **cache)
    lists[3] = None
    pyarrow.parquet.write_table(
        pyarrow.table({"scan": pyarrow.array(lists, kind)}), tmp_path / "set" / "train.parquet"
    )
    with pytest.raises(
        DataError, match=r"volume in row 3 of .*train.parquet .* is missing \(null\); remove that row"
    ):
        load(tmp_path / "set", **cache)


def test_unequal_shapes_are_an_error_until_a_size_is_given(tmp_path: Path) -> None:
    write_volumes(tmp_path, size=(8, 8, 8))
    np.save(tmp_path / "zz.npy", ball((8, 10, 8)))
    with pytest.raises(DataError, match=r"is 8x10x8, the first volume is 8x8x8; give a size \(--size\)"):
        load(tmp_path)
    data = load(tmp_path, size="4")
    assert data.size == (4, 4, 4)
    assert "scaled to cover 4x4x4, and the centre cut out" in data.describe()
    assert load(tmp_path, size="4x6x8").train.batch([0]).shape == (1, 1, 4, 6, 8)
    with pytest.raises(DataError, match="size is '4x4'; accepted: a number such as 64, or DEPTHxH"):
        load(tmp_path, size="4x4")


def test_scaling_keeps_means_of_boxes_and_the_centre() -> None:
    values = torch.rand(4, 8, 4)
    half = scale_and_crop(values, (2, 2, 2))
    expected = torch.nn.functional.avg_pool3d(values[None], 2)[0][:, 1:3]
    torch.testing.assert_close(half, expected)
    assert torch.equal(scale_and_crop(values, (4, 8, 4)), values)


def test_values_that_are_no_bytes_need_a_range(tmp_path: Path) -> None:
    for number in range(12):
        np.save(tmp_path / f"{number:02d}.npy", ball((4, 4, 4), number / 12).astype(np.int16) * 4 - 500)
    with pytest.raises(DataError, match=r"is of int16 with values from .*\(--value-range LOW,HIGH; each"):
        load(tmp_path)
    data = load(tmp_path, value_range="-500,520")
    assert "values from -500 to 520 spread over 0 to 255" in data.describe()
    expected = {ball((4, 4, 4), number / 12).tobytes() for number in range(12)}
    assert {row.numpy().tobytes() for row in data.train.batch(range(len(data.train)))} <= expected
    each = load(tmp_path, value_range="each").train.batch(range(len(data.train))).flatten(1)
    assert each.amin(1).tolist() == [0] * len(each)
    assert each.amax(1).tolist() == [255] * len(each)
    clipped = Volumes((4, 4, 4), "0,1").decode((tmp_path / "00.npy").read_bytes(), "00")
    assert set(np.unique(clipped)) <= {0, 255}
    for wrong in ("1,0", "a,b", "3", "0,inf"):
        with pytest.raises(DataError, match=r"value_range is .*; accepted: LOW,HIGH with LOW below HIGH"):
            load(tmp_path, value_range=wrong)


@pytest.mark.parametrize(
    ("array", "settings", "message"),
    [
        (
            np.full((4, 4, 4), np.nan, np.float32),
            {"value_range": "0,1"},
            "holds 64 values that are not fini",
        ),
        (np.ones((4, 4, 4), np.float32), {"value_range": "each"}, "has the same value everywhere"),
        (np.ones((4, 4), np.uint8), {}, r"is of shape \(4, 4\); accepted: three axes, none empty"),
        (np.ones((0, 4, 4), np.uint8), {}, r"is of shape \(0, 4, 4\); accepted"),
        (np.ones((3, 4, 4, 4), np.uint8), {}, r"is of shape \(3, 4, 4, 4\); accepted"),
        (np.array([{}], dtype=object), {}, "cannot be read as a volume"),
    ],
    ids=["nan", "constant", "flat", "empty", "four", "objects"],
)
def test_arrays_that_are_no_volume(tmp_path: Path, array: np.ndarray, settings: dict, message: str) -> None:
    write_volumes(tmp_path, size=(4, 4, 4))
    np.save(tmp_path / "05.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"05.npy " + message):
        load(tmp_path, **settings)


def test_cut_files_are_named(tmp_path: Path) -> None:
    write_volumes(tmp_path)
    file = tmp_path / "05.npy"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"05.npy cannot be read as a volume"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_read_scaled_and_turned(tmp_path: Path, suffix: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    for number in range(12):
        values = ball((4, 6, 8), number / 12)[::-1]  # stored from right to left
        image = nibabel.Nifti1Image(np.ascontiguousarray(values), np.diag([-1.0, 1.0, 1.0, 1.0]))
        nibabel.save(image, tmp_path / f"{number:02d}{suffix}")
    data = load(tmp_path)
    expected = {ball((4, 6, 8), number / 12).tobytes() for number in range(12)}
    assert {row.numpy().tobytes() for row in data.train.batch(range(len(data.train)))} <= expected
    file = tmp_path / f"05{suffix}"
    whole = gzip.decompress(file.read_bytes()) if suffix.endswith(".gz") else file.read_bytes()
    cut = whole[:400]
    file.write_bytes(gzip.compress(cut) if suffix.endswith(".gz") else cut)
    with pytest.raises(DataError, match=rf"05{suffix} cannot be read as a volume"):
        load(tmp_path)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"00.nii is read with nibabel, which is not installed; pip install"):
        read_volume(bytes(400), "00.nii")


def test_three_slices_and_the_file_of_a_volume(tmp_path: Path) -> None:
    levels = torch.arange(4 * 6 * 8).view(1, 1, 4, 6, 8).to(torch.uint8)
    (picture,) = Volumes((4, 6, 8)).pictures(to_float(levels))
    assert picture.shape == (1, 6, 8 + 2 + 8 + 2 + 6)
    volume = levels[0, 0]
    assert torch.equal(picture[0, :6, :8], volume[2])
    assert torch.equal(picture[0, :4, 10:18], volume[:, 3])
    assert torch.equal(picture[0, :4, 20:], volume[:, :, 4])
    assert (picture[0, :, [8, 9, 18, 19]] == 255).all()
    Volumes((4, 6, 8)).write_all(to_float(levels), tmp_path, ["000000"])
    assert np.array_equal(np.load(tmp_path / "000000.npy"), volume.numpy())


@pytest.mark.parametrize("side", [8, 16], ids=["uniform_window", "gaussian_window"])
def test_similarity_of_volumes_against_its_definition(side: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, side, side, side, dtype=torch.float64)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    line = torch.ones(5) if side < 16 else torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2)
    window = torch.einsum("i,j,k->ijk", line, line, line).double()
    window /= window.sum()
    patches = [volume.unfold(2, *(w := (len(line), 1))).unfold(3, *w).unfold(4, *w) for volume in (x, y)]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * window).sum((-3, -2, -1))

    first, second = map(mean, patches)
    variances = [mean(patch.square()) - mean(patch).square() for patch in patches]
    product = mean(patches[0] * patches[1]) - first * second
    above = (2 * first * second + 1e-4) * (2 * product + 9e-4)
    below = (first.square() + second.square() + 1e-4) * (sum(variances) + 9e-4)
    figures = Volumes((side,) * 3).measure((x - 0.5).float(), (y - 0.5).float())
    inside = (above / below).flatten(1).mean(1)
    torch.testing.assert_close(figures["inner_ssim"].double(), inside, rtol=1e-4, atol=1e-4)
    assert figures["ssim"].shape == (2,)


def test_a_column_of_images_is_taken_before_one_of_numbers(tmp_path: Path) -> None:
    """As features of images often lie beside them."""
    import datasets
    from data_support import write_images

    write_images(tmp_path / "set" / "files", 12)
    files = [str(file) for file in sorted((tmp_path / "set" / "files").iterdir())]
    numbers = [np.zeros((2, 2, 2), np.float32).tolist()] * 12
    kinds = {
        "picture": datasets.Image(),
        "features": datasets.List(datasets.List(datasets.List(datasets.Value("float32")))),
    }
    table = datasets.Dataset.from_dict(
        {"features": numbers, "picture": files}, features=datasets.Features(kinds)
    )
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    assert "kind" not in load(tmp_path / "set", cache_dir=str(tmp_path / "cache")).settings
    with pytest.raises(DataError, match=r"has no column of volumes; its columns are"):
        load(tmp_path / "set", kind="volume", cache_dir=str(tmp_path / "cache"))
