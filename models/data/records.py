"""One encoded image: reading its bytes, from where they may lie, and decoding, with errors that name it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data.sources import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Record = dict[str, Any]  # {"path": str | None, "bytes": bytes | None}


def read_encoded(record: Record | None, row: int, roots: Sequence[Path] | None) -> bytes:
    """The bytes of the image in ``row`` of a split.

    roots: folders in one of which a file that the record names must lie once links are resolved, as in a
    table that may come from anywhere; a path that is not absolute begins at the first. None where the files
    were found by looking. Raises DataError, also for what is no regular file: devices have no end.
    """
    if record is None or (record["bytes"] is None and record["path"] is None):
        raise DataError(f"image {row} of the split is missing (null); remove that row from the data")
    if record["bytes"] is not None:
        encoded: bytes = record["bytes"]
        return encoded
    path = Path(record["path"])
    if roots is not None:
        path = (roots[0] / path).resolve()
        if not any(path.is_relative_to(root.resolve()) for root in roots):
            raise DataError(
                f"image {row} of the split is in the file {record['path']}, which lies outside {roots[0]}; "
                f"put it inside, or store the image's bytes in the table"
            )
    if path.exists() and not path.is_file():
        raise DataError(f"{record['path']} is no regular file; replace or remove it")
    with naming_the_image(record, row):
        return path.read_bytes()


def open_image(record: Record | None, row: int, roots: Sequence[Path] | None) -> Image:
    """The image of one record, turned as its EXIF orientation says; DataError naming the file.

    A block that is no EXIF at all gives no orientation. roots: see :func:`read_encoded`.
    """
    from PIL import Image as pillow
    from PIL import ImageOps

    encoded = read_encoded(record, row, roots)
    assert record is not None
    with naming_the_image(record, row):
        image = pillow.open(io.BytesIO(encoded))
        image.load()
    with naming_the_image(record, row, "save it again without EXIF data"), contextlib.suppress(SyntaxError):
        ImageOps.exif_transpose(image, in_place=True)
    return image


@contextlib.contextmanager
def naming_the_image(
    record: dict[str, Any], row: int, remedy: str = "replace or remove the file"
) -> Iterator[None]:
    """Whatever a decoder raises inside becomes a DataError with the file, the reason and the remedy.

    Damaged and hostile files make decoders raise anything: struct.error, KeyError, MemoryError and errors
    of their own, Pillow's DecompressionBombError for enormous dimensions among them.
    """
    from PIL import UnidentifiedImageError

    try:
        yield
    except Exception as error:
        # Pillow would name the buffer in memory that it was given.
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        reason = reason or type(error).__name__
        raise DataError(
            f"{image_name(record, row)} cannot be read as an image ({reason}); {remedy}"
        ) from error


def image_name(record: dict[str, Any], row: int) -> str:
    """What to call an image in a message: its file, or its row in the split."""
    return str(record["path"] or f"image {row} of the split")
