"""From folders to one HTML file, with all pictures and sounds inside and nothing from outside."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.files import write_whole
from models.report.contents import PICTURES, Section, Table, read_media, read_table, section_of
from models.runs.layout import RunLayout
from models.runs.machine import describe_machine
from models.training.compare import compare

_TEMPLATE = Path(__file__).parent / "page.html"


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of a study, a sweep or runs, by default as ``report.html`` in the folder.

    folders: of one study or sweep, or of runs of `train` and `train-prior`, which are then compared. out: the
    file; of several runs by default ``report.html`` beside the first one's folder. Raises FileNotFoundError
    for a folder with nothing to show, ValueError for runs that cannot be compared.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist; give the folder of a run or of a study")
    place = paths[0] if len(paths) == 1 else paths[0].resolve().parent
    target = RunLayout(place).report if out is None else Path(out)
    if len(paths) == 1:
        page = section_of(paths[0])
    else:
        page = _comparison(paths)
    write_whole(target, render(page))
    return target


def render(page: Section) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    # No time: of what has not changed the page is the same, and every run says when it was made.
    rows = [[name, str(value)] for name, value in describe_machine().items() if value is not None]
    return template.render(page=page, made=Table("This page", ["", ""], rows))


def _comparison(paths: Sequence[Path]) -> Section:
    """Runs beside each other, and each by itself."""
    page = Section("Runs beside each other")
    page.runs = [section_of(path) for path in paths]
    if all(RunLayout(path).config.is_file() for path in paths):
        with tempfile.TemporaryDirectory() as folder:
            compare(paths, folder)
            page.tables = [read_table(file) for file in sorted(Path(folder).glob("*.csv"))]
            curves = read_media([Path(folder) / "curves.png"], PICTURES)
            # By no name of a folder that is gone.
            page.pictures = [replace(picture, title="curves.png") for picture in curves]
    return page
