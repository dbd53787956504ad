"""Names that users bring, in figures and tables: as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models.evaluation.fonts as fonts
from models.evaluation.pictures import save_curves, save_figure

pytestmark = pytest.mark.figures

NAMES = ("_ant", "$x_1$ and $", "a|b", r"100% \alpha", "été", "ant_1^2")


@pytest.fixture
def saved(monkeypatch) -> list:
    """The figures that are saved."""
    figures: list = []
    original = fonts.show_text_as_it_is
    monkeypatch.setattr(
        "models.evaluation.pictures.show_text_as_it_is", lambda f: figures.append(f) or original(f)
    )
    return figures


def test_names_are_no_markup_and_none_is_left_out(tmp_path: Path, saved: list) -> None:
    from models.evaluation.pictures import labelled_rows
    from models.studies.figures import tsne_by_label

    labels = torch.arange(36) % len(NAMES)
    tsne_by_label(tmp_path / "tsne.png", {"codes": torch.rand(36, 4)}, labels, NAMES)
    legend = saved[-1].legends[0].get_texts()
    assert [text.get_text() for text in legend] == list(NAMES)
    labelled_rows(tmp_path / "rows.png", torch.rand(12, 1, 8, 8) - 0.5, NAMES, 2)
    ticks = saved[-1].axes[0].get_yticklabels()
    assert [text.get_text() for text in ticks] == list(NAMES)
    assert not any(text.get_parse_math() for text in (*legend, *ticks))


def test_powers_of_ten_stay_markup(tmp_path: Path, saved: list) -> None:
    save_curves(tmp_path / "curves.png", {"a": {"x": ([1, 2, 3], [0.1, 0.01, 10.0])}}, yscale="log")
    assert all(text.get_parse_math() for text in saved[-1].axes[0].get_yticklabels())


def test_a_font_with_the_characters_is_taken_or_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    from matplotlib.figure import Figure

    covered = dict.fromkeys(("one", "two", "three"), frozenset())
    covered |= {"two": frozenset("日本"), "three": frozenset("日")}
    entries = [type("Entry", (), {"name": name, "fname": name}) for name in covered]
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.font_manager.fontManager.ttflist", entries)
        patch.setattr(fonts, "_covered", lambda file: covered.get(file, frozenset("a")))
        fonts._families_for.cache_clear()
        assert fonts._families_for(frozenset("a日本")) == ("two",)
        fonts._families_for.cache_clear()
    assert capsys.readouterr().err == ""
    figure = Figure()
    figure.suptitle("a語")
    monkeypatch.setattr(fonts, "_covered", lambda file: frozenset("a"))  # on any machine
    save_figure(figure, tmp_path / "a.png")
    fonts._families_for.cache_clear()
    assert "no installed font shows '語'; install one with wide coverage" in capsys.readouterr().err
    assert figure.get_suptitle() == "a語"


def test_a_name_does_not_end_a_cell_of_a_table() -> None:
    from models.evaluation.tables import _cell

    assert _cell("a|b\nc") == r"a\|b c"
