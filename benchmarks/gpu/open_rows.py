"""How many rows the passes of an exact Triton search leave open: the share that the cascade lives on.

The first pass takes one product and lists the rows whose nearest code it does not prove; the second takes
all products for them. Where most rows are listed the cascade costs more than it saves.
"""

from __future__ import annotations

from typing import Any

from ..work import Case, make_inputs


def share(case: Case, device: str) -> dict[str, float]:
    """Share of the rows that the first pass leaves open."""
    from vq_kernels.backends.triton import nearest  # its kernels, which not every machine can import

    x, codebook = make_inputs(case, device)
    return {"open_share": nearest.open_share(x[None], codebook)}


def lines(records: list[dict[str, Any]]) -> list[str]:
    """The records as a small table."""
    shown = ["rows that the first pass of an exact search leaves to the second"]
    for r in records:
        shape = f"N={r['n']} D={r['d']} K={r['k']} {r['data']}"
        shown.append(f"  {shape:<40}{r['open_share']:>9.3%}")
    return shown
