"""Every study at real scale, with its own settings at the smallest size, on data that are made here."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from data_support import write_images
from kinds_support import write_sounds, write_volumes
from studies_support import QUICK_PRIOR, SMALLEST

from models.cli import main
from models.settings import read_yaml
from models.studies import likelihood
from models.studies.catalogue import list_studies
from models.studies.mnist_transformer import _entropy
from models.studies.similarity_definitions import DEFINITIONS, grey, windowed

# What is smaller than at real scale, and the files that only this scale leaves or that show it is whole.
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "cifar-vae-vqvae": (
        {"BATCH_SIZES": {"real": (8, 16)}},
        {"ssim.md", "definitions.md", "training.md", "training-loss.png", "loss.png"},
    ),
    "celeba-sweep": (
        {
            "GRIDS": {"real": {"beta": (0.25,), "lr": (1e-2, 1e-3), "codebook_size": (8,)}},
            "LONGER": {"real": 6},
        },
        {"sweep.md", "iterations.md", "published.png", "best.md", "longer.png", "over-lr.png"},
    ),
    "mnist-transformer": (
        {
            "PRIORS": {"real": QUICK_PRIOR | {"batch_size": 8}},
            "LONGER": {"real": {"epochs": 3}},
            "VARIANTS": {"real": {"downscale": (8,)}},
            "PER_CLASS": {"real": 4},
            "SHOWN": 2,
        },
        {
            *("variants.md", "classes.md", "priors.png", "samples-downscale4-longer.png"),
            *("samples-downscale4-published-codes-by-averages.png", "samples-downscale8.png"),
        },
    ),
    "likelihood": (
        {"PRIORS": {"real": QUICK_PRIOR | {"prior": "pixelcnn", "heads": 4, "batch_size": 8}}},
        {"bits.md", "bits.png", "reconstructions.png"},
    ),
}


def reproduce(name: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the study at real scale with settings that a test has time for; its folder."""
    module = import_module("models.studies." + name.replace("-", "_"))
    tiny = SMALLEST | {"epochs": 1, "precision": "32-true", "size": None, "limit": None}
    tiny |= {"batch_size": 8, "steps": 5} if name == "celeba-sweep" else {"batch_size": 8}
    monkeypatch.setattr(module, "SETTINGS", {"real": module.SETTINGS["real"] | tiny})
    for attribute, value in CASES[name][0].items():
        monkeypatch.setattr(module, attribute, value)
    arguments = ["reproduce", name, "--scale", "real", "--data", str(data), "--runs", str(folder)]
    assert main([*arguments, "--accelerator", "cpu", "--no-progress"]) == 0
    return folder / f"reproduce-{name}-real"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 16 x 16 in two classes."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("first", "second"):
        write_images(folder / name, 40, size=(16, 16))
    return folder


def test_all_studies_have_a_real_scale() -> None:
    assert {name for name, study in list_studies().items() if "real" in study.scales} == {
        "kaokore-vqvae2",
        *CASES,
    }


def check_cifar(folder: Path) -> None:
    """SSIM by every definition, and a run whose codes start at random."""
    assert [row["definition"] for row in rows_of(folder / "definitions.csv")] == list(DEFINITIONS)
    assert rows_of(folder / "ssim.csv")[-1]["model"] == "vqvae, codes at random"
    assert "kmeans_init: false" in (folder / "vqvae-random-start" / "config.yaml").read_text()
    assert "kmeans_init: true" in (folder / "vqvae-batch8" / "config.yaml").read_text()


def check_celeba(folder: Path) -> None:
    """The best setting beside codes at random."""
    rows = rows_of(folder / "best.csv")
    assert [row["run"] for row in rows] == ["best", *(f"K = {k}, codes at random" for k in (128, 256, 512))]
    assert [row["codebook_size"] for row in rows] == ["8", "128", "256", "512"]
    assert {row["steps"] for row in rows} == {"6"}


def check_mnist(folder: Path) -> None:
    """The entropy of the judge's classes, by prior and way of sampling, and what the cases are."""
    check_mnist_cases(folder)
    rows = rows_of(folder / "classes.csv")
    assert len(rows) == 5 * 2 * 2
    for row in rows:
        assert float(row["entropy"]) == pytest.approx(_entropy([int(row["first"]), int(row["second"])]))


def check_mnist_cases(folder: Path) -> None:
    """The base setting with short and longer priors of one VQ-VAE, other weights, and the variant."""
    rows = rows_of(folder / "variants.csv")
    assert [(row["downscale"], row["weights"], row["epochs of priors"]) for row in rows] == [
        *(("4", "published", "1"), ("4", "published", "3"), ("4", "ours", "1")),
        *(("4", "published, codes by averages", "1"), ("8", "published", "1")),
    ]
    assert rows[0]["mse"] == rows[1]["mse"]
    assert rows[0]["nats a code conditional"] != rows[1]["nats a code conditional"]
    models = {path.parent.name: read_yaml(path) for path in folder.glob("downscale*/config.yaml")}
    weights = ("codebook", "alpha", "beta", "variance")
    assert [models["downscale4"][name] for name in weights] == ["gradient", 2.0, 0.2, 1.0]
    assert [models["downscale4-ours"][name] for name in weights] == ["gradient", 2.0, 0.1, None]
    averages = models["downscale4-published-codes-by-averages"]
    assert [averages[name] for name in weights] == ["ema", 2.0, 0.2, 1.0]
    for kind in ("unconditional", "conditional"):
        assert models[f"downscale4-longer-{kind}"]["epochs"] == 3
        assert models[f"downscale4-{kind}"]["epochs"] == models[f"downscale8-{kind}"]["epochs"] == 1


def check_likelihood(folder: Path) -> None:
    """A PixelCNN over the codes, and none of the theory, which small scale shows."""
    assert "prior: pixelcnn" in (folder / "vqvae-logistic-prior" / "config.yaml").read_text()
    assert not (folder / "collapse.md").exists()
    assert "VQ-VAE 4.67" in (folder / "bits.md").read_text()


CHECKS = {
    "cifar-vae-vqvae": check_cifar,
    "celeba-sweep": check_celeba,
    "mnist-transformer": check_mnist,
    "likelihood": check_likelihood,
}


@pytest.mark.parametrize("name", CASES)
def test_study(name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = reproduce(name, images, tmp_path, monkeypatch)
    assert CASES[name][1] | {"report.html"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "study.json").read_text())["scale"] == "real"
    CHECKS[name](folder)


def test_diversity_is_an_entropy() -> None:
    assert _entropy([5, 0, 0]) == 0
    assert _entropy([4, 4]) == pytest.approx(0.693, abs=1e-3)


@pytest.mark.parametrize("kind", ["audio", "volume"])
def test_likelihoods_of_sounds_and_volumes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    data = tmp_path / "data"
    write_sounds(data, 12) if kind == "audio" else write_volumes(data, 24)
    smaller = {"length": None} if kind == "audio" else {}
    monkeypatch.setattr(
        likelihood,
        "KINDS",
        {kind: likelihood.KINDS[kind] | SMALLEST | smaller | {"epochs": 1, "batch_size": 4}},
    )
    monkeypatch.setattr(likelihood, "KIND_PRIOR", likelihood.KIND_PRIOR | QUICK_PRIOR | {"batch_size": 4})
    folder = reproduce("likelihood", data, tmp_path / "runs", monkeypatch)
    rows = rows_of(folder / "bits.csv")
    assert [(row["model"], row["likelihood"]) for row in rows] == [
        *(("vae", "gaussian"), ("vae", "logistic"), ("vqvae", "gaussian"), ("vqvae", "logistic"))
    ]
    assert all(float(row["bits/dim"]) > 0 for row in rows)
    text = (folder / "bits.md").read_text()
    assert ("65,536 levels" if kind == "audio" else "voxel with 256 levels") in text
    assert "Published" not in text  # the published figures are of images
    assert "prior: transformer" in (folder / "vqvae-gaussian-prior" / "config.yaml").read_text()


@pytest.mark.parametrize("name", ["kaokore-vqvae2", "cifar-vae-vqvae", "celeba-sweep", "mnist-transformer"])
def test_studies_of_images_refuse_other_kinds(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained or written."""
    write_sounds(tmp_path / "sounds", 12)
    arguments = ["--scale", "real", "--data", str(tmp_path / "sounds"), "--runs", str(tmp_path / "runs")]
    assert main(["reproduce", name, *arguments]) == 2
    error = capsys.readouterr().err
    assert f"of kind audio; accepted: of kind image for {name}" in error or "but the data are sounds" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["kaokore-vqvae2", *CASES])
def test_data_that_are_not_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", name, "--scale", "real"]) == 2
    folder = import_module("models.studies." + name.replace("-", "_")).SETTINGS["real"]["data"]
    error = capsys.readouterr().err
    assert f"data is '{folder}'" in error
    assert f"(--data path/to/{folder})" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", DEFINITIONS)
def test_equal_images_are_alike_by_every_definition(name: str) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    noisy = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(-0.5, 0.5)
    values = DEFINITIONS[name](noisy, x)
    assert values.shape == (2,)
    assert DEFINITIONS[name](x, x) == pytest.approx([1.0, 1.0], abs=1e-4)
    assert (values < 1).all()


def test_a_range_that_is_too_wide_makes_images_look_alike() -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    one, two, most = (
        windowed(-x, x, size=11, gaussian=True, data_range=value) for value in (1.0, 2.0, 255.0)
    )
    assert (one < two).all()
    assert (two < most).all()
    assert (most > 0.99).all()


def test_grey_is_the_luma_of_colours() -> None:
    white = torch.full((1, 3, 2, 2), 0.5)
    assert grey(white) == pytest.approx(torch.full((1, 1, 2, 2), 0.5), abs=1e-6)
    assert grey(torch.zeros(1, 1, 2, 2)).shape == (1, 1, 2, 2)
