"""Figures are built but not drawn, except where a test says that it looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

import models.evaluation.pictures as pictures

DRAWN = {(Figure, "savefig"): Figure.savefig, (pictures, "show_text_as_it_is"): pictures.show_text_as_it_is}


def save_empty(_: Figure, path: Path, **__: object) -> None:
    Image.new("L", (600, 400), 255).save(path)


@pytest.fixture(scope="module", autouse=True)
def _empty_pictures() -> Iterator[None]:
    """An empty picture for each figure, those of fixtures of a module among them.

    Drawing took more than half of the time of tests that train a model of a few steps.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_empty)
        patch.setattr(pictures, "show_text_as_it_is", lambda figure: None)  # readies it for drawing
        yield


@pytest.fixture(autouse=True)
def _figures_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("figures") is not None:
        for (owner, name), original in DRAWN.items():
            monkeypatch.setattr(owner, name, original)
