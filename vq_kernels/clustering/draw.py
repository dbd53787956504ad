"""Random rows of the (global) batch, drawn on the device: static shapes, no host synchronisation.

The rows are numbered across the ranks and cut into as many equal strata as rows are asked for; one
row is drawn from each. So no row is drawn twice as long as there are rows enough, which a draw with
replacement cannot promise and a permutation of all rows would have to sort for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..distributed import WORLD, ProcessGroup, share_randomness, sum_over_ranks


class DrawnRows(NamedTuple):
    rows: Tensor  # [n, D] float32; zero where not usable
    usable: Tensor  # [n] bool: False where the stratum was empty or the row held NaN or infinity
    total: Tensor  # [] int64: unmasked rows on all ranks
    uniforms: Tensor  # [n] float64 in [0, 1), the same on all ranks, for the caller's use


def draw_rows(
    x: Tensor,
    mask: Tensor | None,
    number: int,
    *,
    channel_dim: int,
    synchronized: bool,
    group: ProcessGroup = WORLD,
    repeat: bool = False,
) -> DrawnRows:
    """Draw ``number`` rows of x, the same on every rank of ``group`` if ``synchronized``.

    Args:
        x: ``[..., D]`` or, with ``channel_dim=1``, ``[B, D, ...]``.
        mask: bool, x's shape without D: True where a row may be drawn.
        repeat: with fewer rows than asked for, draw some twice instead of leaving places unusable.
    """
    rows_here = x.numel() // x.shape[channel_dim]
    # [] int64
    count = mask.sum() if mask is not None else torch.full((), rows_here, dtype=torch.int64, device=x.device)
    if synchronized:
        counts, uniforms = share_randomness(count, _uniforms(number), group)  # [world], [2 n + 2]
        ends = counts.cumsum(0)  # [world]
        total = ends[-1]
        offset = ends[group.rank] - count
    else:
        uniforms = torch.rand(_uniforms(number), dtype=torch.float64, device=x.device)
        total, offset = count, torch.zeros_like(count)
    # Each caller's place gets another stratum each time: the rows of a batch are often in order.
    place = torch.arange(number, dtype=torch.int64, device=x.device)  # [n]
    stratum = (place * golden_step(number) + (uniforms[-2] * number).long()) % number  # [n]
    start = stratum * total // number  # [n]
    size = (stratum + 1) * total // number - start  # [n]
    chosen = start + (uniforms[:number] * size).long()  # [n], a row number among all ranks
    # Turned by a random amount: strata differ in size by one, which would favour some rows.
    chosen = (chosen + (uniforms[-1] * total).long()) % total.clamp(min=1)
    is_drawn = size > 0  # [n]
    if repeat:
        chosen = torch.where(is_drawn, chosen, (uniforms[:number] * total).long())
        is_drawn = is_drawn | (total > 0)
    local = chosen - offset  # [n]
    is_local = is_drawn & (local >= 0) & (local < count)  # [n]
    if rows_here == 0:
        rows = x.new_zeros((number, x.shape[channel_dim]), dtype=torch.float32)
    else:
        if mask is not None:
            local = torch.searchsorted(mask.flatten().cumsum(0), local, right=True)
        rows = take_rows(x, local.clamp(0, rows_here - 1), channel_dim).float()  # [n, D]
    usable = is_local & rows.isfinite().all(1)  # [n]
    rows = torch.where(usable[:, None], rows, 0.0)  # [n, D]
    if synchronized:
        both = sum_over_ranks(torch.cat((rows, usable[:, None].float()), 1), group)  # [n, D + 1]
        rows, usable = both[:, :-1], both[:, -1] > 0
    return DrawnRows(rows, usable, total, uniforms[number : 2 * number])


def skip_draws(number: int, device: torch.device) -> None:
    """Take from the generator what :func:`draw_rows` of ``number`` rows takes, and nothing else."""
    torch.rand(_uniforms(number), dtype=torch.float64, device=device)


def _uniforms(number: int) -> int:
    """A place in its stratum and one for the caller for each row; which stratum is whose, and the turn."""
    return 2 * number + 2


def take_rows(x: Tensor, rows: Tensor, channel_dim: int) -> Tensor:
    """``[n, D]``: rows of x by their number, read in place whatever x's strides."""
    moved = x.movedim(channel_dim, -1)  # [..., D], a view
    index: list[Tensor] = []
    for size in reversed(moved.shape[:-1]):
        index.insert(0, rows % size)
        rows = rows // size
    return moved[tuple(index)]


def golden_step(number: int) -> int:
    """A step near the golden section that visits all of 0..number-1: neighbours land far apart."""
    step = max(1, round(number * 0.6180339887))
    while math.gcd(step, number) != 1:
        step += 1
    return step
