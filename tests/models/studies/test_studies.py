"""Each study from start to end, at the smallest size that still draws every table and figure."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from studies_support import CASES, QUICK_PRIOR, SMALLEST

from models.cli import main
from models.studies.catalogue import Study, list_studies
from models.studies.runner import StudyOptions, mean_std


def test_all_five_studies_are_tested() -> None:
    assert set(CASES) == set(list_studies())


@pytest.fixture(scope="module")
def drawn_panels() -> set[Any]:
    return set()


@pytest.fixture
def _curves_of_runs_once(drawn_panels: set[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves of a run whose panels and lines were drawn before, for a run with other numbers, are empty.

    They took half of the time of the studies, whose own figures are all drawn.
    """
    import models.evaluation.pictures as pictures

    save = pictures.save_figure

    def save_once(figure: Figure, path: Path, caption: str = "") -> Path:
        look = [(a.get_title(), [(x.get_label(), x.get_marker()) for x in a.lines]) for a in figure.axes]
        panels = path.name, str(look)
        if (path.parent / "config.yaml").exists() and panels in drawn_panels:
            Image.new("L", (600, 400), 255).save(path)
            return path
        drawn_panels.add(panels)
        return save(figure, path, caption)

    monkeypatch.setattr(pictures, "save_figure", save_once)


@pytest.mark.figures
@pytest.mark.usefixtures("_curves_of_runs_once")
@pytest.mark.parametrize("name", CASES)
def test_study(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    changes, files, rows = CASES[name]
    module = import_module("models.studies." + name.replace("-", "_"))
    settings = module.SETTINGS["small"] | SMALLEST
    if name == "celeba-sweep":
        settings["steps"] = 5
    monkeypatch.setattr(module, "SETTINGS", {"small": settings})
    for attribute, value in changes.items():
        monkeypatch.setattr(module, attribute, value)
    arguments = [
        "reproduce",
        name,
        "--runs",
        str(tmp_path),
        "--limit",
        "150",
        "--no-progress",
        *(["--seeds", "2"] if name == "kaokore-vqvae2" else []),
    ]
    assert main([*arguments, "--accelerator", "cpu"]) == 0
    folder = tmp_path / f"reproduce-{name}-small"
    assert files <= {path.name for path in folder.iterdir()}
    table = next(path for path in sorted(folder.glob("*.csv")) if path.stem not in ("best", "classes"))
    with open(table, newline="") as file:
        assert len(list(csv.DictReader(file))) == rows
    assert table.with_suffix(".md").read_text().startswith("| ")
    assert "tables and figures in" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert page.count("<img src") >= sum(name.endswith(".png") for name in files)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The (figure, axes) that are drawn."""
    import models.evaluation.pictures as pictures
    import models.studies.figures as studies

    drawn: list[Any] = []
    original = pictures.new_figure
    for module in (pictures, studies):
        monkeypatch.setattr(
            module, "new_figure", lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1]
        )
    return drawn


@pytest.mark.figures
def test_panels_of_the_same_lines_share_a_legend_outside_and_a_range(tmp_path: Path, figures) -> None:
    from models.evaluation.pictures import save_curves

    low, high = ([1.0, 2.0, 3.0], [0.0, 1.0, 1.0]), ([1.0, 2.0, 3.0], [5.0, 6.0, 9.0])
    panels = {"a": {"x": low, "y": low}, "b": {"x": high, "y": high}}
    save_curves(tmp_path / "shared.png", panels, y_labels={"a": "nats"}, share_y=True)
    figure, axes = figures[-1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    assert [axis.get_legend() for axis in axes] == [None, None]
    assert [axis.get_ylabel() for axis in axes] == ["nats", ""]
    assert axes[0].get_ylim() == axes[1].get_ylim()
    save_curves(tmp_path / "own.png", {"a": {"x": low, "y": low}, "b": {"z": high, "y": high}})
    figure, axes = figures[-1]
    assert figure.legends == []
    assert None not in [axis.get_legend() for axis in axes]


@pytest.mark.parametrize("classes", [1, 10, 14, 50])
def test_classes_have_distinct_colours(classes: int) -> None:
    from models.studies.figures import distinct_colours

    assert len(set(distinct_colours(classes))) == classes


@pytest.mark.figures
def test_rows_of_samples_and_classes_in_t_sne_are_named(tmp_path: Path, figures) -> None:
    from models.evaluation.pictures import labelled_rows
    from models.studies.figures import tsne, tsne_by_label

    names = ("noble", "warrior", "commoner")
    labelled_rows(tmp_path / "rows.png", torch.rand(12, 3, 8, 8) - 0.5, names, 4)
    _, (axis,) = figures[-1]
    ticks = zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)
    places = {text.get_text(): place for text, place in ticks}
    assert places == {"noble": 3.5, "warrior": 13.5, "commoner": 23.5}
    labels = torch.arange(30) % 3
    points = tsne({"a": torch.rand(30, 4), "b": torch.rand(30, 5)})
    assert [placed.shape for placed in points.values()] == [(30, 2), (30, 2)]
    assert np.ptp(tsne({"collapsed": torch.ones(30, 5)})["collapsed"]) == 0
    tsne_by_label(tmp_path / "tsne.png", points, labels, names)
    figure, axes = figures[-1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(names)
    assert [axis.get_legend() for axis in axes] == [None, None]


def test_a_study_is_listed_from_its_source_alone(tmp_path: Path, monkeypatch) -> None:
    """Name, summary and options of a file that is laid there, without running it."""
    import models.studies.catalogue as catalogue

    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "catalogue.py"))
    (tmp_path / "catalogue.py").write_text("import nowhere\n")
    (tmp_path / "new_study.py").write_text(
        '"""What is studied.\n\nMore."""\nimport nowhere\n'
        'OPTIONS = ("seeds",)\nSETTINGS = {"small": {}}\ndef run(options): ...\n'
    )
    assert list_studies() == {"new-study": Study("new-study", "What is studied", ("seeds",), ("small",))}


def test_mean_and_deviation() -> None:
    assert mean_std([1.0, 2.0, 3.0]) == "2.0000 (1.0000)"
    assert mean_std([0.5]) == "0.5000"


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_seeds_below_one_are_refused(tmp_path: Path, capsys, seeds: str) -> None:
    assert main(["reproduce", "kaokore-vqvae2", "--runs", str(tmp_path), "--seeds", seeds]) == 2
    assert f"seeds is {seeds}; accepted: an integer of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seeds_out_of_range_are_refused(tmp_path: Path, capsys, seed: str) -> None:
    assert main(["reproduce", "likelihood", "--runs", str(tmp_path), "--seed", seed, "--no-progress"]) == 2
    assert f"seed is {seed}; accepted: an integer" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("study", "option"),
    [("celeba-sweep", "seeds"), ("likelihood", "seeds"), ("cifar-vae-vqvae", "batch_size")],
)
def test_options_that_a_study_does_not_take(tmp_path: Path, capsys, study: str, option: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", study, "--" + option.replace("_", "-"), "2"])
    with pytest.raises(ValueError, match=f"{option} is 2; accepted: none, as {study} "):
        list_studies()[study].load()(StudyOptions(runs=str(tmp_path), **{option: 2}))


def test_a_sweep_of_few_images_and_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that 20 images fill, and the steps that were done, not those of the scale."""
    from models.studies import celeba_sweep as module

    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST})
    monkeypatch.setattr(module, "GRIDS", CASES["celeba-sweep"][0]["GRIDS"])
    few = ["--runs", str(tmp_path), "--limit", "20", "--epochs", "1", "--accelerator", "cpu", "--no-progress"]
    assert main(["reproduce", "celeba-sweep", *few, "--batch-size", "8"]) == 0
    with open(tmp_path / "reproduce-celeba-sweep-small" / "best.csv", newline="") as file:
        assert next(csv.DictReader(file))["steps"] == "2"


def test_batch_sizes_that_the_images_do_not_fill_are_left_out() -> None:
    from models.studies.cifar_vae_vqvae import _batch_sizes

    few: Any = SimpleNamespace(data=SimpleNamespace(train=range(40), name="few"))
    sizes, left_out = _batch_sizes(few, (16, 32, 64, 128))
    assert sizes == [16, 32]
    assert left_out == " Left out, as there are 40 training images: batches of 64, 128."
    assert _batch_sizes(few, (16,)) == ([16], "")
    with pytest.raises(
        ValueError, match=r"few has 40 training images, fewer .* of 64; give more \(--limit\)"
    ):
        _batch_sizes(few, (64,))


def test_without_labels_there_are_no_conditional_priors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from models.studies import mnist_transformer as module

    for number in range(40):
        pixels = torch.randint(256, (8, 8), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(tmp_path / f"{number:02d}.png")
    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST})
    monkeypatch.setattr(module, "PRIORS", {"small": QUICK_PRIOR})
    monkeypatch.setattr(module, "VARIANTS", {"small": {"downscale": ()}})
    options = {"data": str(tmp_path), "runs": str(tmp_path / "runs"), "batch_size": 8, "accelerator": "cpu"}
    folder = list_studies()["mnist-transformer"].load()(StudyOptions(**options, progress=False))
    text = (folder / "variants.md").read_text()
    assert "No class-conditional priors, as" in text
    assert "bits/dim unconditional" in text
    assert "bits/dim conditional" not in text
    assert not list(folder.glob("*-conditional*"))


def test_curves_by_epoch_their_spread_and_when_they_are_near_their_best() -> None:
    from models.runs.history import by_epoch, first_within, spread

    series = ([0.0, 3.0, 4.0, 9.0, 12.0], [1.0, 3.0, 4.0, 6.0, 8.0])
    assert by_epoch(series, 4) == ([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0])
    assert first_within(series, 0.25) == 9.0
    assert first_within(([], []), 0.1) is None
    runs = [{"x": ([1.0, 2.0], [1.0, 5.0])}, {"x": ([1.0, 2.0, 3.0], [3.0, 4.0, 9.0])}]
    assert spread(runs, "x") == {
        "mean": ([1.0, 2.0], [2.0, 4.5]),
        "lowest": ([1.0, 2.0], [1.0, 4.0]),
        "highest": ([1.0, 2.0], [3.0, 5.0]),
    }


@pytest.mark.figures
@pytest.mark.parametrize(("classes", "lowest", "highest"), [(2, 0.2, 0.4), (10, 0.9, 1.1)])
def test_panels_of_samples_are_as_high_as_their_rows(
    classes: int, lowest: float, highest: float, tmp_path: Path
) -> None:
    from PIL import Image

    from models.studies.figures import sample_panels

    names = tuple(f"class {number}" for number in range(classes))
    images = torch.zeros(classes * 10, 1, 8, 8)
    panels = {f"panel {number}": (images, names if number > 1 else ()) for number in range(4)}
    with Image.open(sample_panels(tmp_path / "panels.png", panels, 10, "digits")) as picture:
        assert lowest < picture.height / picture.width < highest


def test_faces_are_coloured_by_both_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_support import kaokore

    from models.studies import kaokore_vqvae2 as module

    monkeypatch.setattr(module, "SETTINGS", {"small": module.SETTINGS["small"] | SMALLEST})
    monkeypatch.setattr(module, "_samples", lambda *_: None)
    data = kaokore(tmp_path / "data")
    options = {"data": str(data), "runs": str(tmp_path), "name": "study", "size": "8", "accelerator": "cpu"}
    folder = module.run(StudyOptions(**options, batch_size=4, seeds=2, progress=False))
    assert {"tsne.png", "tsne-gender.png"} <= {path.name for path in folder.iterdir()}
    with open(folder / "slower.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["epochs"] == "2"
    assert "range of pixels is not stated" in (folder / "losses.md").read_text()
