"""What the folder of a study, a sweep or a run holds, in the form that the page shows it."""

from __future__ import annotations

import base64
import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from models.files import read_object
from models.runs.export import hashes_now
from models.runs.history import read_history
from models.runs.layout import RunLayout
from models.runs.machine import read_attempts
from models.runs.measured import read_figures
from models.runs.pictures import still_of
from models.settings import format_value, read_yaml

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif"}
SOUNDS = {".wav": "audio/wav", ".flac": "audio/flac"}
MOST_SOUNDS = 32  # of one folder
_CODES = ("perplexity", "usage")


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns, and what is said below them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Media:
    """A picture or a sound as a data URI."""

    title: str
    uri: str


@dataclass
class Section:
    """A folder on the page; sections of the runs in it may follow inside."""

    title: str
    tables: list[Table] = field(default_factory=list)
    pictures: list[Media] = field(default_factory=list)
    sounds: list[Media] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    settings: Table | None = None
    runs: list[Section] = field(default_factory=list)


def section_of(folder: Path) -> Section:
    """What ``folder`` holds: that of a run, or of a study or sweep with the runs in it.

    FileNotFoundError for a folder with nothing to show.
    """
    if RunLayout(folder).config.is_file():
        return run_section(RunLayout(folder))
    section = Section(folder.resolve().name)
    section.tables = [read_table(file) for file in sorted(folder.glob("*.csv"))]
    section.pictures = list(read_media(sorted(folder.iterdir()) if folder.is_dir() else [], PICTURES))
    section.sounds = list(islice(read_media(sorted(folder.glob("*")), SOUNDS), MOST_SOUNDS))
    made_with = folder / "study.json"
    if made_with.is_file():
        section.settings = _settings(read_object(made_with, "make the study again"))
    runs = sorted(file.parent for file in folder.glob("*/config.yaml"))
    section.runs = [run_section(RunLayout(run)) for run in runs]
    if not (section.tables or section.pictures or section.runs):
        raise FileNotFoundError(f"{folder} holds no run, no table and no picture; give the folder of a run")
    return section


def run_section(layout: RunLayout) -> Section:
    """Settings, figures, use of the codes, curves, pictures and sounds of a run."""
    section = Section(layout.folder.resolve().name)
    section.settings = _settings(read_yaml(layout.config))
    history = read_history(layout.folder)
    logged = {
        name.removeprefix("validation/"): values[-1]
        for name, (_, values) in history.items()
        if name.startswith("validation/") and values
    }
    now = functools.cache(hashes_now)  # files of weights are read once
    measured = {split: read_figures(layout, split, now) for split in ("test", "validation", "train")}
    figures = {f"{split} split": values for split, (values, _) in measured.items() if values}
    section.warnings = [reason for _, reason in measured.values() if reason]
    figures["validation split, last of training"] = logged
    codes = next(iter(figures.items()))
    used = {name: value for name, value in codes[1].items() if name.startswith(_CODES)}
    if used:
        section.tables.append(_columns("Use of the codes", {codes[0]: used}, "Over the whole split."))
    section.tables.append(_columns("Figures", figures))
    if layout.machine.is_file():
        section.tables.append(_attempts(read_attempts(layout.machine)))
    if layout.warnings.is_file():
        lines = layout.warnings.read_text(encoding="utf-8").splitlines()
        section.warnings += [line.partition(": ")[2] for line in lines]
    latest = list(layout.epoch_pictures.values())[-1:]
    others = sorted(
        file for place in ("samples", "reconstruct-*") for file in layout.folder.glob(f"{place}/**/*")
    )
    others, gone = still_of(layout, others, now)
    section.warnings += gone
    section.pictures = list(read_media([layout.curves, *latest, *others], PICTURES))
    section.sounds = list(islice(read_media(others, SOUNDS), MOST_SOUNDS))
    return section


def read_table(file: Path) -> Table:
    """A table as :func:`models.evaluation.tables.write_table` wrote it, with the caption of its Markdown."""
    with open(file, newline="", encoding="utf-8") as handle:
        columns, *rows = list(csv.reader(handle)) or [[]]
    markdown, caption = file.with_suffix(".md"), ""
    if markdown.is_file():
        lines = markdown.read_text(encoding="utf-8").splitlines()
        caption = " ".join(line for line in lines if not line.startswith("|")).strip()
    return Table(file.stem, columns, [[_cell(cell) for cell in row] for row in rows], caption)


def _columns(title: str, figures: Mapping[str, Mapping[str, float]], caption: str = "") -> Table:
    """A row for each figure, a column for each of what it was measured on."""
    names = list(dict.fromkeys(name for values in figures.values() for name in values))
    shown = {label: values for label, values in figures.items() if values}
    rows = [[name, *(_cell(values.get(name, "")) for values in shown.values())] for name in names]
    return Table(title, ["figure", *shown], rows, caption)


def _settings(values: Mapping[str, Any]) -> Table:
    def text(value: Any) -> str:
        return format_value(tuple(value) if isinstance(value, list) else value)

    return Table("Settings", ["setting", "value"], [[name, text(value)] for name, value in values.items()])


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for attempt in attempts for name in attempt))
    rows = [[name, *("" if a.get(name) is None else str(a[name]) for a in attempts)] for name in names]
    return Table("Made with", ["", *(f"start {number + 1}" for number in range(len(attempts)))], rows)


def read_media(files: Sequence[Path], kinds: Mapping[str, str]) -> Iterator[Media]:
    """The files of ``kinds``, by suffix, that exist."""
    for file in files:
        kind = kinds.get(file.suffix.lower())
        if kind is not None and file.is_file():
            content = base64.b64encode(file.read_bytes()).decode("ascii")
            yield Media(f"{file.parent.name}/{file.name}", f"data:{kind};base64,{content}")


def _cell(value: str | float) -> str:
    """A figure with four digits; text as it is."""
    try:
        number = float(value)
    except ValueError:
        return str(value)
    return str(value) if str(value).lstrip("-").isdecimal() else f"{number:.4g}"
