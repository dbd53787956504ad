"""Names that users bring, in figures as they are: no markup, and a font that has their characters."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_text_as_it_is(figure: Figure) -> None:
    """Take ``$`` in the texts of ``figure`` for itself, and add fonts for what the default one lacks.

    Where no installed font has a character, a line on standard error asks for one.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    # The labels of a scale are markup of matplotlib's own: powers of ten on a logarithmic one.
    of_scales: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = axis.get_ticklabels(which="both")
            if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter):
                of_scales |= set(map(id, labels))
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and id(text) not in of_scales]
    characters = {character for text in texts for character in text.get_text() if character.isprintable()}
    families = _families_for(frozenset(characters))
    for text in texts:
        text.set_parse_math(False)
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])


@cache
def _families_for(characters: frozenset[str]) -> tuple[str, ...]:
    """The fonts that have the characters which the default font lacks, as few as can be."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    missing = characters - _covered(findfont(FontProperties()))
    families: list[str] = []
    # The font of last resort draws the same box for all characters of a script.
    installed = {e.name: e.fname for e in fontManager.ttflist if not e.name.startswith("Last Resort")}
    candidates = installed if missing else {}
    while missing:
        best = max(candidates, key=lambda name: len(missing & _covered(candidates[name])))
        shown = missing & _covered(candidates[best])
        if not shown:
            break
        families.append(best)
        missing -= shown
    if missing:
        print(
            f"no installed font shows {''.join(sorted(missing)[:10])!r}; install one with wide coverage, for "
            f"example Noto Sans (fonts-noto, fonts-noto-cjk), to see these characters in figures",
            file=sys.stderr,
        )
    return tuple(families)


@cache
def _covered(file: str) -> frozenset[str]:
    """The characters that a font has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(file).get_charmap()))
