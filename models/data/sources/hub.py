"""Data sets of the Hugging Face hub, by their id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from models.data.settings import DataConfig
from models.data.sources.base import DataError, Source, SourceData, check_cache

PATIENCE = 10.0  # seconds for the hub to say whether it has a data set


class Hub(Source):
    """``OWNER/NAME``, unless there is a folder OWNER here: then it is a path, perhaps a mistyped one."""

    rank: ClassVar[int] = 40

    def claims(self, data: str) -> bool:
        owner, _, name = data.partition("/")
        if not owner.strip() or not name.strip() or "/" in name or owner.startswith((".", "~")):
            return False
        return not Path(owner).exists()

    def has_subsets(self, data: str) -> bool:
        return True

    def open(self, config: DataConfig) -> SourceData:
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        name = config.data
        try:
            with _without_retries(name):
                splits = datasets.load_dataset(name, config.subset, cache_dir=config.cache_dir)
        except (OSError, ValueError, RuntimeError) as error:
            check_cache(error, config.cache_dir)
            remedy = "check the name and the connection"
            if "config" in str(error).lower():  # as datasets says that there are several, or no such one
                remedy = "choose one of its configurations (--subset NAME)"
            raise DataError(
                f"there is no folder {name!r}, and the data set {name!r} could not be loaded from the "
                f"Hugging Face hub ({type(error).__name__}: {error}); {remedy}"
            ) from error
        places = (config.cache_dir or datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
        return SourceData(dict(splits), roots=tuple(map(Path, places)))


@contextmanager
def _without_retries(name: str) -> Iterator[None]:
    """Inside, a hub that cannot be reached is not asked again and again; the cache is read instead."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=PATIENCE)
    except HfHubHTTPError:
        pass  # it answered: load_dataset says what is wrong
    except Exception:  # of the client for HTTP, which is another one in every version
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, offline in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = offline
