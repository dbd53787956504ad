"""Data sets of the Hugging Face hub, by their id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from models.data.sources.base import DataError, Source

if TYPE_CHECKING:
    from datasets import Dataset


class Hub(Source):
    """``OWNER/NAME``, where no folder has that name."""

    rank: ClassVar[int] = 40

    def claims(self, data: str) -> bool:
        if Path(data).expanduser().exists() or data.startswith((".", "~", "/")):
            return False
        owner, _, name = data.partition("/")
        return bool(owner.strip()) and bool(name.strip()) and "/" not in name

    def open(self, data: str, cache_dir: str | None) -> dict[str, Dataset]:
        import datasets

        try:
            return dict(datasets.load_dataset(data, cache_dir=cache_dir))
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"there is no folder {data!r}, and the data set {data!r} could not be loaded from the "
                f"Hugging Face hub ({type(error).__name__}: {error}); check the name and the connection"
            ) from error
