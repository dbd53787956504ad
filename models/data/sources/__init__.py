"""Where images, sounds and volumes come from: one source a file, each of which says which data it claims."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from models.data.errors import DataError
from models.data.settings import DataConfig
from models.data.sources.base import Source, SourceData, folder_of, split_named

GIVEN = "given in Python"  # the setting ``data`` of a run whose images came from a program
__all__ = ["GIVEN", "DataError", "Source", "SourceData", "location", "open_source", "split_named"]


def open_source(config: DataConfig) -> SourceData:
    """What ``config.data`` names, as the first source that claims it opens it.

    data: ``digits``; a folder of images, sounds or volumes, of parquet files or in the layout of KaoKore; or
    the id of a data set on the Hugging Face hub, OWNER/NAME. Items are left encoded. Raises DataError.
    """
    if config.data == GIVEN:
        raise DataError(
            "the images were given in Python and lie nowhere; give data (--data FOLDER, or the argument data)"
        )
    for source in _sources():
        if source.claims(config.data):
            if config.subset is not None and not source.has_subsets(config.data):
                raise DataError(
                    f"subset is {config.subset!r}, but {config.data} has no subsets; leave it out, or give "
                    f"none (--subset none)"
                )
            return source.open(config)
    raise DataError(_unclaimed(config.data))


def has_subsets(data: str) -> bool:
    """Whether the setting ``subset`` can mean something with ``data``, as with those that are nowhere."""
    return next((source.has_subsets(data) for source in _sources() if source.claims(data)), True)


def location(data: str) -> str:
    """``data`` in a form that means the same from every working directory."""
    folder = folder_of(data)
    return data if folder is None or data in ("digits", GIVEN) else str(folder.resolve())


@cache
def _sources() -> tuple[Source, ...]:
    """One of each source in this folder, in the order in which they are asked."""
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem != "__init__":
            import_module(f"{__name__}.{file.stem}")
    return tuple(kind() for kind in sorted(Source.__subclasses__(), key=lambda kind: kind.rank))


def _unclaimed(data: str) -> str:
    """Why no source claims ``data``, and what to give instead."""
    path = Path(data).expanduser()
    if not data.strip():
        return f"data is {data!r}; accepted: a folder ('.' for this one), a hub id or 'digits'"
    if path.is_dir():
        return (
            f"data is {data}, a folder without images, sounds, volumes, parquet files or labels.csv; "
            f"accepted: one with such files in it"
        )
    if path.exists():
        return f"data is {data}, which is a file; accepted: the folder that holds it"
    if path.parent.is_dir() and path.parent != Path():
        names = ", ".join(sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir())[:12])
        return f"data is {data}, which does not exist; {path.parent} holds the folders: {names or 'none'}"
    if path.is_absolute() or data.startswith((".", "~")) or "/" in data:
        return f"data is {data}, which does not exist; accepted: an existing folder, a hub id or 'digits'"
    return (
        f"data is {data!r}, and there is no such folder; accepted: an existing folder, 'digits', or the full "
        f"id of a data set on the hub, OWNER/NAME (ylecun/mnist, not mnist)"
    )
