"""What codes that are equal cost: a codebook of zeros, and one that holds every code nine times.

Both occur in training (before k-means, after a collapse), and a search that scores every near-tie again
must not fall off a cliff there. Each is timed in pairs with a codebook of as many distinct codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..agreement import Disagreement
from ..measure import Budget, measure_pairs, timer_for
from ..peers import our_search
from ..work import Case, make_inputs

COPIES = 9


def codebooks(codebook: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, codebook ``[K, D]``, and the distinct codes ``[J, D]`` that its first J rows hold."""
    yield "zeros", torch.zeros_like(codebook), torch.zeros_like(codebook[:1])
    distinct = codebook[: -(-len(codebook) // COPIES)]
    copies = distinct.repeat(COPIES, 1)[: len(codebook)]
    yield f"{COPIES} copies", copies, distinct


def measure(case: Case, device: str, backend: str | None, budget: Budget) -> list[dict[str, Any]]:
    """A record for each codebook: the time of a search there over that with distinct codes.

    Raises:
        Disagreement: a row got another code than the first of its equals.
    """
    x, codebook = make_inputs(case, device)
    usual, records = our_search(x, codebook, backend=backend), []
    for name, codes, distinct in codebooks(codebook):
        search = our_search(x, codes, backend=backend)
        wrong = int((search() != our_search(x, distinct, backend=backend)()).sum())
        if wrong:
            raise Disagreement(f"{wrong} of {case.n} rows did not get the first of equal codes ({name})")
        pairs = measure_pairs(usual, search, timer=timer_for(device), budget=budget)
        records.append(
            {
                "codes": name,
                "backend": backend,
                "n": case.n,
                "d": case.d,
                "k": case.k,
                "milliseconds": 1e3 * pairs.peer_s.median,
                "time_over_distinct": pairs.ratio.median,
            }
        )
    return records


def lines(records: list[dict[str, Any]]) -> list[str]:
    """The records as a small table."""
    shown = ["searches of codebooks with equal codes, times over that of distinct codes"]
    for r in records:
        shape = f"N={r['n']} D={r['d']} K={r['k']}"
        shown.append(
            f"  {r['codes']:<10}{r['backend'] or 'automatic':<10}{shape:<28}{r['milliseconds']:>9.3f} ms"
            f"{r['time_over_distinct']:>8.2f}x"
        )
    return shown
