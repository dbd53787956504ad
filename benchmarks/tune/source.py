"""``tuned.py`` as text: one architecture's block of tile sizes written anew, the rest left as it is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from vq_kernels.backends.triton import tuned
from vq_kernels.backends.triton.plan import Config

PATH = Path(tuned.__file__)
ANY = 1 << 30

# A stored line: largest D, values, and the GPU and date of a line that was tuned.
_LINE = re.compile(r"^        \((\w+), (\(.*\))\),(?:  # (.*))?$")
_KEY = re.compile(r"^    (\d+): (?:\[|(\w+),)$")


class Line(NamedTuple):
    """A configuration for D up to ``largest``, and where it was found (empty: not by running)."""

    largest: int
    config: Config
    provenance: str

    def __str__(self) -> str:
        largest = "_ANY" if self.largest == ANY else str(self.largest)
        return f"        ({largest}, {self.config.stored()}),{self.provenance and f'  # {self.provenance}'}"


Block = Mapping[int, list[Line]]  # by number of products


def served(architecture: int, known: Collection[int]) -> int:
    """Which of the known architectures serves this one, as ``plan.make_config`` finds it."""
    return max((a for a in known if a <= architecture), default=min(known))


def stored(architecture: int, products: int, dim: int) -> Config:
    """The stored values for rows of ``dim`` numbers; a depth of 0 is left as it is."""
    rules = tuned.TABLE[served(architecture, tuned.TABLE)][products]
    return Config(*next(values for largest, values in rules if dim <= largest))


def _paragraph(paragraphs: list[str], name: str) -> int:
    """Which paragraph assigns ``name``, its comment included."""
    return next(i for i, text in enumerate(paragraphs) if re.search(rf"^{name}: ", text, re.MULTILINE))


def _names(table: str) -> dict[int, str]:
    """Architecture -> name of its block, of the assignment of TABLE."""
    keys = (_KEY.match(line) for line in table.splitlines())
    return {int(key[1]): key[2] for key in keys if key}


def provenances(source: str, architecture: int) -> dict[tuple[int, int], str]:
    """(products, largest D) -> GPU and date, of the lines serving an architecture that were tuned."""
    paragraphs = source.split("\n\n")
    names = _names(paragraphs[_paragraph(paragraphs, "TABLE")])
    block = paragraphs[_paragraph(paragraphs, names[served(architecture, names)])]
    result, products = {}, 0
    for text in block.splitlines():
        if key := _KEY.match(text):
            products = int(key[1])
        elif (line := _LINE.match(text)) and line[3]:
            result[products, ANY if line[1] == "_ANY" else int(line[1])] = line[3]
    return result


def block_source(architecture: int, block: Block) -> str:
    """The assignment of an architecture's block, as ``tuned.py`` holds it."""
    lines = [
        "# Written by python -m benchmarks.tune: a line without a GPU's name was not tuned.",
        f"_SM{architecture}: _Rules = {{",
    ]
    for products, rules in block.items():
        lines += [f"    {products}: [", *map(str, rules), "    ],"]
    return "\n".join([*lines, "}"])


def rewrite(source: str, architecture: int, block: Block) -> str:
    """The text of ``tuned.py`` with this block; a block that serves no architecture any more goes."""
    paragraphs = source.rstrip("\n").split("\n\n")
    at = _paragraph(paragraphs, "TABLE")
    head = paragraphs[at].partition("TABLE: ")[0]
    before = _names(paragraphs[at])
    after = before | {architecture: f"_SM{architecture}"}
    lines = [f"    {key}: {after[key]}," for key in sorted(after)]
    paragraphs[at] = "\n".join([f"{head}TABLE: dict[int, _Rules] = {{", *lines, "}"])
    paragraphs.insert(at, block_source(architecture, block))
    gone = set(before.values()) - set(after.values())
    if before.get(architecture) == after[architecture]:
        gone.add(after[architecture])  # the old block of that name, which stands before the new one
    for name in gone:
        del paragraphs[_paragraph(paragraphs, name)]
    return "\n\n".join(paragraphs) + "\n"
