"""Whether what a command is asked for fits into memory, asked before the work."""

from __future__ import annotations

import os


def check_room(count: int, samples: int, elements: int, codes: int = 0) -> None:
    """ValueError where ``samples`` that are held at once need more memory than the machine has.

    count: the setting that asks for them. elements, codes: of one sample.
    """
    bytes_each = 4 * elements + 8 * codes  # float32, int64
    if samples * bytes_each > memory():
        most = memory() // bytes_each * count // samples
        accepted = (
            f"up to {most}; draw the others with other seeds (--seed)"
            if most
            else "fewer draws for a sample (--best-of, --reject)"
        )
        raise ValueError(
            f"count is {count}, which makes {samples} samples of {bytes_each} bytes, more than the "
            f"{memory() / 2**30:.3g} GiB of memory here; accepted: {accepted}"
        )


def memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
