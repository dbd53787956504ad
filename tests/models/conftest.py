"""Figures are built but not drawn, except where a test says that it looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.axis
import pytest
from matplotlib.figure import Figure
from PIL import Image

import models.evaluation.pictures as pictures

DRAWN: dict[tuple[Any, str], Any] = {
    (Figure, "savefig"): Figure.savefig,
    (pictures, "show_text_as_it_is"): pictures.show_text_as_it_is,
}

LAZY_TICKS = getattr(matplotlib.axis, "_LazyTickList", None)
if LAZY_TICKS is not None:
    DRAWN[LAZY_TICKS, "__get__"] = LAZY_TICKS.__get__


def no_ticks(self: Any, axis: Any, _: type) -> Any:
    """None until they are asked for by number; matplotlib makes a first one of each kind for new axes."""
    if axis is None:
        return self
    ticks: list[object] = []
    setattr(axis, "majorTicks" if self._major else "minorTicks", ticks)
    return ticks


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
        if LAZY_TICKS is not None:
            patch.setattr(LAZY_TICKS, "__get__", no_ticks)
        yield


@pytest.fixture(autouse=True)
def _figures_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("figures") is not None:
        for (owner, name), original in DRAWN.items():
            monkeypatch.setattr(owner, name, original)
