"""Rows of results, as the one printed table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .measure import Spread
from .memory import MIB
from .roofline import Roofs, lowest_time
from .work import Case


@dataclass
class Row:
    """One contender at one piece of work; either measured, or with the reason why not."""

    work: str  # "search", "forward" or "step"
    case: Case
    contender: str
    spread: Spread | None = None  # seconds per call
    ratio: Spread | None = None  # its time over that of our exact search or our layer
    pairs: int = 0
    differing_rows: int | None = None  # all of them ties within rounding
    shares: dict[str, float] = field(default_factory=dict)  # of the machine's roof, by arithmetic unit
    peak: int | str | None = None  # bytes beyond inputs and outputs, or why not measured
    target: float | None = None  # the ratio to reach
    best: bool = False  # the fastest of the peers
    reason: str | None = None
    launches: int | None = None  # GPU kernels in one call

    @property
    def is_ours(self) -> bool:
        return self.contender.startswith("vq_kernels")

    def add_shares(self, roofs: Roofs, units: Iterable[str]) -> None:
        """Share of the lowest roof, were the arithmetic done in each of ``units``."""
        if self.spread is not None:
            for unit in units:
                least, _ = lowest_time(self.case, roofs, work=self.work, unit=unit)
                self.shares[unit] = least / self.spread.median

    def as_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "work": self.work,
            "n": case.n,
            "d": case.d,
            "k": case.k,
            "data": case.data,
            "dtype": str(case.dtype).removeprefix("torch."),
            "contender": self.contender,
            "milliseconds": _json_spread(self.spread, 1e3),
            "time_over_ours": _json_spread(self.ratio, 1.0),
            "pairs": self.pairs,
            "differing_rows": self.differing_rows,
            "gflops": None if self.spread is None else case.search_flops / self.spread.median / 1e9,
            "share_of_roof": self.shares,
            "peak_bytes": self.peak,
            "target": self.target,
            "best_peer": self.best,
            "not_measured": self.reason,
            "launches": self.launches,
        }


def _json_spread(spread: Spread | None, scale: float) -> dict[str, float] | None:
    if spread is None:
        return None
    return {name: value * scale for name, value in spread._asdict().items()}


def mark_best(rows: list[Row]) -> None:
    """Mark the fastest measured peer of each piece of work."""
    groups: dict[tuple[str, Case], list[Row]] = {}
    for row in rows:
        row.best = False
        if not row.is_ours and row.spread is not None:
            groups.setdefault((row.work, row.case), []).append(row)
    for group in groups.values():
        min(group, key=lambda row: row.spread.median if row.spread else float("inf")).best = True


TITLES = {
    "search": "search",
    "forward": "layer, forward",
    "step": "layer, forward + backward + EMA",
}


def table(rows: list[Row]) -> str:
    """The printed table; ``*`` marks the best peer, times over ours carry their quartiles."""
    lines = [
        f"{'':2}{'contender':<34}{'ms':>10}  {'time over ours':<24}{'share of the roof':<30}"
        f"{'peak MiB':>9}  target"
    ]
    group: tuple[str, Case] | None = None
    for row in rows:
        if (row.work, row.case) != group:
            group = (row.work, row.case)
            lines += ["", f"{TITLES[row.work]}: {row.case.shape}"]
        lines.append(_line(row))
    return "\n".join(lines)


def _line(row: Row) -> str:
    head = f"{'* ' if row.best else '  '}{row.contender:<34}"
    if row.spread is None:
        return f"{head}  not measured: {row.reason}"
    ratio = "" if row.ratio is None else "{:.2f}x [{:.2f} {:.2f}]".format(*row.ratio)
    shares = ", ".join(f"{share:.0%} {unit}" for unit, share in row.shares.items())
    peak = f"{row.peak / MIB:.1f}" if isinstance(row.peak, int) else "-"
    verdict = ""
    if row.target is not None and row.ratio is not None:
        verdict = f"{row.target:g}x {'met' if row.ratio.median >= row.target else 'missed'}"
    if row.launches is not None:
        verdict = f"{verdict} {row.launches} launches".strip()
    return f"{head}{row.spread.median * 1e3:>10.3f}  {ratio:<24}{shares:<30}{peak:>9}  {verdict}".rstrip()
