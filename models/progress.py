"""Progress bars of what takes longer than a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

DELAY = 2.0  # seconds after which a bar appears; what is done sooner shows none


def progress_bar(total: int, description: str, unit: str, *, enabled: bool) -> tqdm[None]:
    """A bar on standard error from 0 to ``total``, to be used in a ``with`` block and moved by ``update(n)``.

    Of several processes the first one shows it.
    """
    hidden = not enabled or int(os.environ.get("RANK", "0")) > 0
    return tqdm(
        total=total, desc=description, unit=unit, delay=DELAY, disable=hidden, leave=False, dynamic_ncols=True
    )


@contextmanager
def library_bars(*, enabled: bool) -> Iterator[None]:
    """Inside, ``datasets`` and what it downloads with show bars of their own only if ``enabled``.

    Of several processes the first one shows them.
    """
    import datasets
    import huggingface_hub.utils

    hidden = not enabled or int(os.environ.get("RANK", "0")) > 0
    shown: list[Any] = [
        library
        for library in (datasets, huggingface_hub.utils)
        if hidden and not library.are_progress_bars_disabled()
    ]
    for library in shown:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bars()
