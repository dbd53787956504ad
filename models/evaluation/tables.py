"""Tables of figures, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.files import write_whole

Row = Mapping[str, str | float | int]


def write_table(folder: Path, name: str, rows: Sequence[Row], caption: str = "") -> str:
    """``NAME.md`` and ``NAME.csv`` in ``folder``; returns the text of the first.

    A row may lack columns that others have.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / f"{name}.csv", text.getvalue())
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    table = "\n".join(lines) + "\n" + (f"\n{caption}\n" if caption else "")
    write_whole(folder / f"{name}.md", table)
    return table


def _cell(value: str | float | int) -> str:
    """A value in a Markdown table, where ``|`` would end the cell."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")
