"""Of which weights the pictures and sounds of `sample` and `reconstruct` are, and which are of today's."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.data.splits import SPLITS
from models.files import only_writer, read_object, write_whole
from models.runs.export import hashes_now
from models.runs.layout import RunLayout

Hashes = Callable[[str | Path], list[str]]
_Stamps = dict[str, tuple[int, int]]
_Origin = dict[str, Any]


@contextmanager
def made_of(folder: Path, layout: RunLayout, decoder: str | Path | None = None) -> Iterator[None]:
    """Inside, what is written into ``folder`` is noted to be of the weights of the run, and of ``decoder``.

    No other process writes there meanwhile. Files that are written again are of the weights of the last time.
    Outside the run, where no page looks, nothing is noted. ValueError for a damaged record, before the work.
    """
    with only_writer(folder):
        if not _lies_in(folder, layout.folder):
            yield
            return
        earlier, before = _read(RunLayout.made_of(folder)), _stamps(folder)
        try:
            yield
        finally:  # what an interrupted command has written is of these weights too
            _note(folder, earlier, before, layout, decoder)


def _lies_in(folder: Path, run: Path) -> bool:
    """Whether ``folder`` is below ``run``, by its name or where its links lead."""
    return run.resolve() in folder.resolve().parents or run.absolute() in folder.absolute().parents


def _note(
    folder: Path, made: list[_Origin], before: _Stamps, layout: RunLayout, decoder: str | Path | None
) -> None:
    written = {name for name, stamp in _stamps(folder).items() if before.get(name) != stamp}
    if not written:
        return
    origin = {
        "weights": hashes_now(layout.folder),
        "decoder": None if decoder is None else str(Path(decoder).resolve()),
        "decoder_weights": [] if decoder is None else hashes_now(decoder),
    }
    others = before.keys() - written
    kept = [one | {"files": [name for name in one["files"] if name in others]} for one in made]
    made = [*(one for one in kept if one["files"]), origin | {"files": sorted(written)}]
    write_whole(RunLayout.made_of(folder), json.dumps({"made": made}) + "\n")


def still_of(layout: RunLayout, files: Sequence[Path], now: Hashes) -> tuple[list[Path], list[str]]:
    """Those of ``files`` that are of the weights of today, and for each folder with others what to do.

    now: gives the hashes of a run's weights. Files of which nothing is noted are taken as they are, as are
    those of a decoder that lies elsewhere now. ValueError for a damaged record.
    """

    @functools.cache
    def noted(folder: Path) -> dict[str, _Origin]:
        return {name: one for one in _read(RunLayout.made_of(folder)) for name in one["files"]}

    shown: list[Path] = []
    gone: dict[Path, int] = {}
    for file in files:
        folders = [folder for folder in file.parents if layout.folder in folder.parents]  # nearest first
        folder = next((one for one in folders if file.relative_to(one).as_posix() in noted(one)), None)
        if folder is None or not _changed(layout, noted(folder)[file.relative_to(folder).as_posix()], now):
            shown.append(file)
        elif file.suffix != RunLayout.made_of(folder).suffix:
            gone[folder] = gone.get(folder, 0) + 1
    return shown, [
        f"{folder.relative_to(layout.folder)}: {count} of the files are of earlier weights and not shown; "
        f"renew them: python -m models {_command(layout, folder)}"
        for folder, count in gone.items()
    ]


def _command(layout: RunLayout, folder: Path) -> str:
    """What writes into ``folder`` of the run again, as far as its name says how."""
    command = "sample" if folder.relative_to(layout.folder).parts[0] == layout.samples.name else "reconstruct"
    flags = {layout.samples: "", **{layout.reconstruct(split): f" --split {split}" for split in SPLITS}}
    return f"{command} {layout.folder}{flags.get(folder, f' --out {folder}')}"


def _changed(layout: RunLayout, origin: _Origin, now: Hashes) -> bool:
    if origin["weights"] != now(layout.folder):
        return True
    decoder = origin["decoder"]
    return bool(decoder and Path(decoder).is_dir() and origin["decoder_weights"] != now(decoder))


def _read(record: Path) -> list[_Origin]:
    if not record.is_file():
        return []
    made = read_object(record, "remove it").get("made")
    keys = {"weights", "decoder", "decoder_weights", "files"}
    if not isinstance(made, list) or not all(
        isinstance(one, dict) and keys <= set(one) and isinstance(one["files"], list) for one in made
    ):
        raise ValueError(f"{record} does not say of what the files beside it are; remove it")
    return made


def _stamps(folder: Path) -> _Stamps:
    """When each file below ``folder`` was written, and its number on the disk, by its path there."""
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, file.stat().st_ino)
        for file in folder.rglob("*")
        if file.is_file()
    }
