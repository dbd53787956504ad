"""Progress bars of what takes longer than a moment."""

from __future__ import annotations

import os

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
