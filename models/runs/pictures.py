"""Of which weights the pictures and sounds of `sample` and `reconstruct` are, and which are of today's."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.files import only_writer, read_object, write_whole
from models.runs.export import hashes_now
from models.runs.layout import RunLayout

Hashes = Callable[[str | Path], list[str]]
_Stamps = dict[str, tuple[int, int]]


@contextmanager
def made_of(folder: Path, layout: RunLayout, decoder: str | Path | None = None) -> Iterator[None]:
    """Inside, what is written into ``folder`` is noted to be of the weights of the run, and of ``decoder``.

    No other process writes there meanwhile. Files that are written again are of the weights of the last time.
    Outside the run, where no page looks, nothing is noted.
    """
    with only_writer(folder):
        before = _stamps(folder)
        try:
            yield
        finally:  # what an interrupted command has written is of these weights too
            _note(folder, before, layout, decoder)


def _note(folder: Path, before: _Stamps, layout: RunLayout, decoder: str | Path | None) -> None:
    record = RunLayout.made_of(folder)
    written = [name for name, stamp in _stamps(folder).items() if before.get(name) != stamp]
    if not written or layout.folder.resolve() not in folder.resolve().parents:
        return
    origin = {
        "weights": hashes_now(layout.folder),
        "decoder": None if decoder is None else str(Path(decoder).resolve()),
        "decoder_weights": [] if decoder is None else hashes_now(decoder),
    }
    made: list[dict[str, Any]] = []
    for earlier in _read(record):
        files = [name for name in earlier["files"] if name in before and name not in written]
        if files:
            made.append(earlier | {"files": files})
    write_whole(record, json.dumps({"made": [*made, origin | {"files": sorted(written)}]}) + "\n")


def still_of(layout: RunLayout, files: Sequence[Path], now: Hashes) -> tuple[list[Path], list[str]]:
    """Those of ``files`` that are of the weights of today, and for each folder with others what to do.

    now: gives the hashes of a run's weights. Files of which nothing is noted are taken as they are, as are
    those of a decoder that lies elsewhere now. ValueError for a damaged record.
    """
    made = functools.cache(_read)
    shown: list[Path] = []
    gone: dict[Path, int] = {}
    for file in files:
        below = file.relative_to(layout.folder)
        folder = layout.folder / below.parts[0]
        name = "/".join(below.parts[1:])
        origin = next((one for one in made(RunLayout.made_of(folder)) if name in one["files"]), None)
        if origin is None or not _changed(layout, origin, now):
            shown.append(file)
        elif file.suffix != RunLayout.made_of(folder).suffix:
            gone[folder] = gone.get(folder, 0) + 1
    words = []
    for folder, count in gone.items():
        command, _, split = folder.name.replace("samples", "sample").partition("-")
        again = f"python -m models {command} {layout.folder}" + (f" --split {split}" if split else "")
        words.append(
            f"{folder.name}: {count} of the files are of earlier weights and not shown; renew them: {again}"
        )
    return shown, words


def _changed(layout: RunLayout, origin: dict[str, Any], now: Hashes) -> bool:
    if origin["weights"] != now(layout.folder):
        return True
    decoder = origin["decoder"]
    return bool(decoder and Path(decoder).is_dir() and origin["decoder_weights"] != now(decoder))


def _read(record: Path) -> list[dict[str, Any]]:
    if not record.is_file():
        return []
    made = read_object(record, "remove it").get("made")
    keys = {"weights", "decoder", "decoder_weights", "files"}
    if not isinstance(made, list) or not all(isinstance(one, dict) and keys <= set(one) for one in made):
        raise ValueError(f"{record} does not say of what the files beside it are; remove it")
    return made


def _stamps(folder: Path) -> _Stamps:
    """When each file below ``folder`` was written, and its number on the disk, by its path there."""
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in folder.rglob("*")
        if file.is_file()
    }
