"""What the options of sampling, evaluate and reconstruct change, in the library and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hierarchy_support import CODES, hierarchy
from PIL import Image

from models import VQVAE, VQVAE2, load_pretrained
from models.cli import drawing, main
from models.codes.encode import encode
from models.codes.sample import decode, sample_codes
from models.data import DataConfig, load_data, to_float, to_uint8
from models.evaluation.evaluate import evaluate
from models.evaluation.pictures import side_by_side
from models.runs.config import TrainConfig

TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "codebook_size": CODES}


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=150))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data) -> Path:
    """A folder with ``run``, an untrained model of two levels, and ``prior``, random priors of its codes."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    model = VQVAE2(1, downscales=(2, 2), likelihood="gaussian", **TINY).eval()
    model.save_pretrained(folder / "run" / "model")
    config = TrainConfig(name="run", runs=str(folder), model="vqvae2", downscales=(2, 2), limit=150)
    config.save(folder / "run" / "config.yaml")
    store = encode(model, data, folder / "codes", source=str(folder / "run" / "model"))
    for level, prior in enumerate(hierarchy((2, 4))):
        prior.save_pretrained(folder / "prior" / f"level{level}")
    store.description.save(folder / "prior")
    return folder


def sample(runs: Path, folder: Path, *flags: str) -> dict[str, np.ndarray]:
    """The codes that the command draws."""
    assert main(["sample", str(runs / "prior"), "--device", "cpu", "--out", str(folder), *flags]) == 0
    return dict(np.load(folder / "codes.npz"))


def read_picture(path: Path, like: torch.Tensor) -> torch.Tensor:
    """The grey picture, brought back to the size of ``like``, which it shows enlarged."""
    shown = torch.from_numpy(np.asarray(Image.open(path)).copy())
    factor = shown.shape[1] // like.shape[1]
    return shown[::factor, ::factor]


def test_every_prior_gets_its_conditions_and_the_filters() -> None:
    """The first and the last are of classes, the one between is not."""
    calls: list[dict[str, object]] = []

    class Recorder:
        def __init__(self, num_classes: int | None) -> None:
            self.num_classes = num_classes

        def sample(self, shape: tuple[int, ...], **given: object) -> torch.Tensor:
            calls.append(given)
            return torch.full(shape, len(calls))

    priors = [Recorder(10), Recorder(None), Recorder(10)]
    labels = torch.tensor([3, 1])
    filters = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "guidance": 1.5, "generator": torch.Generator()}
    levels = sample_codes(priors, [(1, 1), (2, 2), (4, 4)], labels, **filters)
    assert [call.pop("labels") is labels for call in calls] == [True, False, True]
    for call, upper in zip(calls, [None, levels[0], levels[1]], strict=True):
        assert call.pop("upper") is upper
    assert calls == [filters | {"on_drawn": None}] * 3


def test_images_of_samples_are_in_range() -> None:
    model = VQVAE(1, downscale=2, likelihood="gaussian", **TINY).eval()
    model.decoder.up[-1].bias.data.fill_(3.0)
    assert decode(model, [torch.zeros(3, 4, 4, dtype=torch.int64)]).max() == 0.5


@pytest.mark.parametrize(
    "flags", [["--top-k", "1"], ["--top-p", "1e-9"], ["--temperature", "1e-9"]], ids=lambda flags: flags[0]
)
def test_filters_on_the_command_line_reach_the_priors(runs: Path, tmp_path: Path, flags: list[str]) -> None:
    """Six samples of one class all differ, but not where each code is the likeliest one."""
    count = ["--classes", "3", "--count", "6"]
    assert len(np.unique(sample(runs, tmp_path, *count)["level1"], axis=0)) == 6
    assert len(np.unique(sample(runs, tmp_path, *count, *flags)["level1"], axis=0)) == 1


def test_samples_on_the_command_line_depend_on_the_seed(runs: Path, tmp_path: Path) -> None:
    first, again, other = (sample(runs, tmp_path, "--count", "2", "--seed", seed) for seed in ("0", "0", "1"))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["level1"] != other["level1"]).any()


def test_the_picture_of_samples_shows_their_codes_one_class_a_row(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[torch.Tensor, list[str]]] = []
    monkeypatch.setattr(drawing, "labelled_rows", lambda *given: shown.append(given[1:3]))
    drawn = sample(runs, tmp_path, "--count", "2")
    codes = [torch.from_numpy(drawn[f"level{level}"]) for level in range(2)]
    ((images, names),) = shown
    expected = to_uint8(decode(load_pretrained(runs / "run" / "model"), codes))
    assert (images.int() - expected.int()).abs().max() <= 1  # rounded to bytes, batches of other sizes
    assert images.dtype == torch.uint8
    assert names == [str(digit) for digit in range(10)]
    assert drawn["labels"].tolist() == [digit for digit in range(10) for _ in range(2)]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_evaluate_takes_the_split_asked_for(runs: Path, data, tmp_path: Path, split: str) -> None:
    out = tmp_path / "figures.json"
    flags = ["--split", split, "--device", "cpu", "--out", str(out)]
    assert main(["evaluate", str(runs / "run"), *flags]) == 0
    truth = evaluate(load_pretrained(runs / "run" / "model"), data, split=split)["mse"]
    assert json.loads(out.read_text())["mse"] == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_reconstruct_takes_the_split_asked_for(runs: Path, data, tmp_path: Path, split: str) -> None:
    flags = ["--split", split, "--count", "8", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["reconstruct", str(runs / "run"), *flags]) == 0
    x = to_float(data.split(split).batch(range(8)))
    expected = side_by_side(x, load_pretrained(runs / "run" / "model").reconstruct(x))[0]
    shown = read_picture(tmp_path / "side_by_side.png", expected)
    assert (shown.int() - expected.int()).abs().max() <= 1
