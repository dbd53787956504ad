"""Where images stand in a picture, and that a file holds the pixels it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.evaluation import pictures
from models.evaluation.pictures import (
    DPI,
    grid,
    labelled_rows,
    legend_below,
    line_style,
    new_figure,
    save_curves,
    save_figure,
    save_image,
    side_by_side,
)

pytestmark = pytest.mark.figures


def test_grids_are_filled_row_by_row_with_white_between() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(-1, 3, 2, 4) * 10
    picture = grid(images, 3)
    assert picture.shape == (3, 5, 14)
    assert picture[0, ::3, ::5].tolist() == [[0, 10, 20], [30, 40, 255]]
    assert (picture[:, 2] == 255).all()
    assert (picture[:, :, [4, 9]] == 255).all()


def test_each_reconstruction_stands_right_of_its_original() -> None:
    x = torch.tensor([0.0, 0.2]).view(2, 1, 1, 1) - 0.5
    assert side_by_side(x, x + 0.4, columns=1)[0, ::2, ::2].tolist() == [[0, 102], [51, 153]]
    assert side_by_side(x, x + 0.4, columns=2)[0, ::2, ::2].tolist() == [[0, 102, 51, 153]]


def test_saved_pictures_keep_colours_and_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8)
    path = save_image(image, tmp_path / "new" / "a.png", smallest=12)
    saved = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)
    assert torch.equal(saved, image.repeat_interleave(3, 1).repeat_interleave(3, 2))


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are saved."""
    figures: list = []
    original = pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda f, *a, **k: figures.append(f) or original(f, *a, **k))
    return figures


def test_colour_is_what_a_line_shows_and_style_its_split() -> None:
    subjects: list[str] = []
    labels = ("top level, train", "top level, validation", "bottom level, train", "bottom level, validation")
    styles = [line_style(label, subjects) for label in labels]
    assert [style["color"] for style in styles] == ["C0", "C0", "C1", "C1"]
    assert [style["linestyle"] for style in styles] == ["--", "-", "--", "-"]
    labels = ("vqvae, mean of 3 seeds", "vqvae, lowest of 3 seeds", "vqvae, highest of 3 seeds")
    styles = [line_style(label, subjects) for label in labels]
    assert [(style["color"], style["linestyle"]) for style in styles] == [
        ("C2", "-"),
        ("C2", ":"),
        ("C2", ":"),
    ]


def test_no_legend_covers_a_line_and_the_caption_is_above(tmp_path: Path, saved: list) -> None:
    high = ([1.0, 2.0, 3.0], [0.0, 9.0, 1.0])
    panels = {"a": {"one": high, "two": high}, "b": {"three": high}}
    save_curves(tmp_path / "own.png", panels, caption="digits, seed 0, " * 12)
    (figure,) = saved
    figure.canvas.draw()
    assert "seed 0" in figure.get_suptitle()
    for axes in figure.axes:
        frame = axes.get_window_extent()
        assert axes.get_legend().get_window_extent().y1 <= frame.y0
        assert figure._suptitle.get_window_extent().y0 >= frame.y1
        assert figure._suptitle.get_window_extent().width <= figure.bbox.width
        assert frame.height > 100, "what is around the panel leaves it room"


@pytest.mark.parametrize(
    ("x", "scale", "is_whole"),
    [([1, 2, 3, 4], "linear", True), ([0.25, 0.5, 0.75], "linear", False), ([1, 10], "log", True)],
    ids=["epochs", "fractions", "powers"],
)
def test_between_two_epochs_is_no_tick(
    x: list[float], scale: str, is_whole: bool, tmp_path: Path, saved: list
) -> None:
    save_curves(tmp_path / "curves.png", {"a": {"one": (x, [float(place) for place in x])}}, xscale=scale)
    (axes,) = saved[0].axes
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert all(tick % 1 == 0 for tick in ticks) is is_whole
    assert len(ticks) >= 2


@pytest.mark.parametrize(("panels", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (5, 2, 3)])
def test_panels_in_rows(panels: int, rows: int, columns: int) -> None:
    _, axes = new_figure(panels)
    assert len(axes) == panels
    grids = {axis.get_subplotspec().get_gridspec().get_geometry() for axis in axes}
    assert grids == {(rows, columns)}


def test_a_legend_of_a_hundred_names_leaves_the_panel_its_size(tmp_path: Path) -> None:
    figure, (axes,) = new_figure(1)
    lines = {f"class number {number}": axes.plot([0, 1], [0, number])[0] for number in range(100)}
    legend_below(figure, lines)
    save_figure(figure, tmp_path / "many.png")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0
    assert axes.get_window_extent().height > 150


def test_many_samples_of_few_classes_are_no_strip(tmp_path: Path, saved: list) -> None:
    labelled_rows(tmp_path / "rows.png", torch.rand(60, 1, 4, 4) - 0.5, ("a", "b", "c"), 8, caption="digits")
    with Image.open(tmp_path / "rows.png") as image:
        assert image.width < 3 * image.height
    (axes,) = saved[0].axes
    assert axes.images[0].get_array().shape == (3 * 14 + 2 * 2, 39)
    assert axes.get_yticks().tolist() == [6.5, 22.5, 38.5]


def test_samples_are_not_shown_smaller_than_they_are(tmp_path: Path, saved: list) -> None:
    names = ("female+incarnation", "male+incarnation")
    labelled_rows(tmp_path / "rows.png", torch.rand(32, 3, 64, 64) - 0.5, names, 16)
    figure = saved[0]
    figure.canvas.draw()
    (axes,) = figure.axes
    width = axes.images[0].get_array().shape[1]
    assert axes.get_window_extent().width * DPI / figure.dpi >= width
