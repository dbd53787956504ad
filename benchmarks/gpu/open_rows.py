"""How many rows the passes of an exact search leave open: the share that the cascade lives on.

The first pass takes one product and lists the rows whose nearest code it does not prove; the second takes
all products for them. Where most rows are listed the cascade costs more than it saves.
"""

from __future__ import annotations

from typing import Any

from vq_kernels.backends import get_backend
from vq_kernels.backends.cuda import CudaBackend

from ..work import Case, make_inputs


def shares(case: Case, device: str, backend: str) -> dict[str, Any]:
    """The backend, and shares of the rows that its passes leave open: ``open_share`` after the first, and for
    CUDA C++ ``still_open_share`` after the second."""
    x, codebook = make_inputs(case, device)
    chosen = get_backend(backend)
    if isinstance(chosen, CudaBackend):
        first, second = chosen.open_rows(x[None], codebook, "l2")
        return {"backend": backend, "open_share": first / case.n, "still_open_share": second / case.n}
    from vq_kernels.backends.triton import nearest  # its kernels, which not every machine can import

    return {"backend": backend, "open_share": nearest.open_share(x[None], codebook)}


def lines(records: list[dict[str, Any]]) -> list[str]:
    """The records as a small table."""
    shown = ["rows that the first pass of an exact search leaves to the second, and the second to the last"]
    for r in records:
        shape = f"N={r['n']} D={r['d']} K={r['k']} {r['data']}"
        still = f"{r['still_open_share']:>9.3%}" if "still_open_share" in r else ""
        shown.append(f"  {r['backend']:<10}{shape:<40}{r['open_share']:>9.3%}{still}")
    return shown
