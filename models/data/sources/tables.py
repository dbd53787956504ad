"""Tables of text as spreadsheets and other systems write them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

from models.data.sources.base import DataError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """The names of the columns, and the rows: the line that each ends on and its cells by column.

    Columns are separated by commas, semicolons or tabs; lines end as on any system; text is UTF-8, or
    UTF-16 with a byte order mark. Space around a cell is removed, ``3.0`` is read as ``3``, and rows without
    any text are left out. A cell is None where the line ends before it. Raises DataError.
    """
    encoded = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if encoded.startswith(mark)), "utf-8")
    try:
        text = encoded.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save the table as CSV in UTF-8") from error
    header = text.lstrip().splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns = [(name or "").strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    try:
        rows = [(reader.line_num, {name: _cell(row.get(name)) for name in columns}) for row in reader]
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num} is no row of a table ({error}); correct it"
        ) from error
    return columns, [(line, row) for line, row in rows if any(row.values())]


def _cell(text: str | None) -> str | None:
    stripped = None if text is None else text.strip()
    return re.sub(r"^([0-9]+)\.0+$", r"\1", stripped) if stripped else stripped
