"""``python -m benchmarks.soak --seconds N``: random and adversarial rows, held to an independent truth.

Every search path of the CPU that runs here finds the nearest codes of the same rows. The truth comes
from float64 scores of torch whose near-ties are settled in rational arithmetic. Printed for each path:
rows, rows a second of the search, wrong rows. The exit status is 1 if there is a wrong one; its case can
be drawn again from the seed printed with it.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from .paths import PATHS, nearest_code_with_bound, on_path, usable_paths
from .soak_inputs import FEW, PLENTY, Size

# float64 numbers of a block of scores
_BLOCK = 1 << 20
# Rows of a case that rational arithmetic settles, at up to a millisecond each.
_MOST_SETTLED = 200


@dataclass(frozen=True)
class Case:
    """One draw, from its number alone."""

    kind: str
    size: Size
    metric: str
    dtype: torch.dtype
    channel_first: bool
    seed: int

    def __str__(self) -> str:
        s = self.size
        layout = ", channel first" if self.channel_first else ""
        return f"seed {self.seed}: {self.kind} {s.n} x {s.d} x {s.k}, {self.metric}, {self.dtype}{layout}"

    def draw(self) -> tuple[Tensor, Tensor]:
        """x ``[1, N, D]`` of the case's dtype and layout, codebook ``[K, D]``."""
        g = torch.Generator().manual_seed(self.seed)
        x, codebook = (PLENTY | FEW)[self.kind](self.size, g)
        if self.metric == "cosine":
            codebook = torch.nn.functional.normalize(codebook)
        most = torch.finfo(self.dtype).max
        x = x.clamp(-most, most).to(self.dtype)[None]
        return (x.transpose(1, 2).contiguous().transpose(1, 2) if self.channel_first else x), codebook


def make_case(seed: int, rows: int) -> Case:
    """Case number ``seed``; ``rows`` for kinds that are checked quickly, a few hundred for the others."""
    g = torch.Generator().manual_seed(seed ^ 0x5EED)

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    plenty = pick(8) > 0
    kinds = list(PLENTY if plenty else FEW)
    d = (3, 4, 8, 15, 16, 17, 20, 32, 33, 64, 100, 256)[pick(12)]
    k = (2, 7, 31, 64, 100, 129, 256, 300, 513, 1100)[pick(10)]
    cost = max(1, d * k // 4096)
    n = max(200, rows // cost) + pick(50) if plenty else 100 + pick(100)
    dtype = torch.float32 if pick(4) else (torch.bfloat16, torch.float16)[pick(2)]
    metric = "l2" if pick(4) else "cosine"
    return Case(kinds[pick(len(kinds))], Size(n, d, k), metric, dtype, pick(4) == 0, seed)


def _settle(row: Tensor, codebook: Tensor, candidates: list[int], metric: str) -> int:
    """The lowest of the nearest candidates in rational arithmetic."""
    x = [Fraction(v) for v in row.tolist()]

    def score(j: int) -> Fraction:
        e = [Fraction(v) for v in codebook[j].tolist()]
        product = sum((a * b for a, b in zip(x, e, strict=True)), Fraction())
        half = sum((b * b for b in e), Fraction()) / 2 if metric == "l2" else Fraction()
        return half - product

    return min(candidates, key=lambda j: (score(j), j))


def true_indices(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """The nearest code of each row of finite x ``[N, D]`` among finite codes.

    -1 where float64 leaves it open, after the first ``_MOST_SETTLED`` such rows: those are not counted.
    """
    rows, codes = x.double(), codebook.double()
    half = 0.5 * codes.square().sum(1) if metric == "l2" else torch.zeros(len(codes), dtype=torch.float64)
    norms = codes.norm(dim=1)
    # Any order of summation: gamma_{D+2} of |x||e| + |e|^2/2, twice.
    unit = 2.0 * (x.shape[1] + 4) * 2.0**-53
    result = torch.empty(len(rows), dtype=torch.int64)
    block = max(1, _BLOCK // len(codes))
    settled = 0
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        scores = torch.addmm(half, part, codes.T, alpha=-1.0)
        best, index = scores.min(1)
        result[first : first + block] = index
        lengths = part.norm(dim=1)
        most = unit * (lengths * norms.max() + half.max())
        second = scores.scatter(1, index[:, None], torch.inf).amin(1)
        open_rows = (second - best <= 2.0 * most).nonzero()[:, 0]
        errors = unit * (lengths[open_rows, None] * norms + half)
        low = scores[open_rows] - errors
        near = low <= (scores[open_rows] + errors).amin(1, keepdim=True)
        for i, candidates in zip(open_rows.tolist(), near, strict=True):
            if int(candidates.sum()) == 1:
                result[first + i] = int(candidates.nonzero()[0])
                continue
            settled += 1
            found = candidates.nonzero()[:, 0].tolist()
            over = settled > _MOST_SETTLED
            result[first + i] = -1 if over else _settle(x[first + i], codebook, found, metric)
    return result


def search(path: str, x: Tensor, codebook: Tensor, metric: str, bound_scale: float = 1.0) -> Tensor:
    """Indices ``[N]`` of x ``[1, N, D]`` by one path, its error bounds multiplied by ``bound_scale``."""
    with on_path(path):
        return nearest_code_with_bound(x, codebook, metric, bound_scale)[0]


@dataclass
class Tally:
    """What one path has done so far."""

    rows: int = 0
    wrong: int = 0
    seconds: float = 0.0


def soak(
    paths: list[str], seconds: float, seed: int = 0, rows: int = 1 << 18, bound_scale: float = 1.0
) -> dict[str, Tally]:
    """Draw cases until ``seconds`` are over, one at least; prints every case with a wrong row."""
    tallies = {path: Tally() for path in paths}
    end = time.monotonic() + seconds
    while True:
        case = make_case(seed, rows)
        x, codebook = case.draw()
        truth = true_indices(x[0], codebook, case.metric)
        for path, tally in tallies.items():
            start = time.perf_counter()
            got = search(path, x, codebook, case.metric, bound_scale)
            tally.seconds += time.perf_counter() - start
            tally.rows += int((truth >= 0).sum())
            differs = (got != truth) & (truth >= 0)
            if wrong := int(differs.sum()):
                tally.wrong += wrong
                row = int(differs.nonzero()[0])
                print(f"{path}: {wrong} wrong, row {row} has {got[row]} for {truth[row]}; {case}", flush=True)
        seed += 1
        if time.monotonic() > end:
            return tallies


def main(arguments: list[str] | None = None) -> int:
    """Run for the time given; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to draw (default: 60)")
    parser.add_argument(
        "--paths", nargs="+", default=None, help=f"of {', '.join(PATHS)} (default: all usable)"
    )
    parser.add_argument("--seed", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--rows", type=int, default=1 << 18, help="rows of a cheap case (default: 262144)")
    parser.add_argument(
        "--bound-scale", type=float, default=1.0, help="multiply the bounds, to see wrong rows found"
    )
    options = parser.parse_args(arguments)
    paths = usable_paths() if options.paths is None else options.paths
    for path in paths:
        if path not in usable_paths():
            parser.error(f"--paths is {path!r}; accepted here: {', '.join(usable_paths())}")
    tallies = soak(paths, options.seconds, options.seed, options.rows, options.bound_scale)
    for path, tally in tallies.items():
        rate = tally.rows / max(tally.seconds, 1e-9)
        print(f"{path:16} {tally.rows:>13,} rows  {rate:>12,.0f} rows/s  {tally.wrong:,} wrong")
    return int(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
