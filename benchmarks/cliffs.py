"""Awkward inputs: how many times longer a search takes than on random rows and codes of the same size.

``python -m benchmarks`` prints the table; ``python -m benchmarks --cliffs`` draws compositions of changes to
random data for ``--seconds`` and prints the worst ratio found with the input that gives it. With one thread
(``OMP_NUM_THREADS=1``) times are the process's own, so that what else the machine does hardly matters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vq_kernels.backends import native

from .measure import Budget, Deadline, Pairs, measure_pairs, processor_timer
from .soak_inputs import Size, gaussian

SIZE = Size(8192, 64, 1024)
Change = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def _uniform(low: float, high: float, g: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=g))


def one_long_code(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    e[-1] *= 1e7 / e[-1].norm()
    return x, e


def ten_long_codes(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    e[-10:] *= 1e4 / e[-10:].norm(dim=1, keepdim=True)
    return x, e


def zero_rows(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(x), e


def every_second_row_zero(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x[::2] = 0.0
    return x, e


def unit_codes(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, torch.nn.functional.normalize(e, dim=1)


def repeated_rows(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x[torch.randint(max(1, len(x) // 100), (len(x),), generator=g)].clone(), e


def tiny(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x * 1e-30, e * 1e-30


def huge(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x * 1e18, e * 1e18


def two_clusters(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    shift = 10.0 ** _uniform(1, 4, g)
    x[::2] += shift
    e[::2] += shift
    return x, e


def far_clusters(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x[::2] += 1e4
    e[::2] += 1e4
    return x, e


def four_clusters(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    centres = 10.0 ** _uniform(1, 3, g) * torch.randn(4, x.shape[1], generator=g)
    return (
        x + centres[torch.randint(4, (len(x),), generator=g)],
        e + centres[torch.randint(4, (len(e),), generator=g)],
    )


def offset(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    shift = 10.0 ** _uniform(1, 5, g)
    return x + shift, e + shift


def collapsed(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, e[:1] + 10.0 ** _uniform(-7, -3, g) * e


def half_negated(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    e[::2] *= -1.0
    return x, e


def near_copies_in_groups_of(size: int) -> Change:
    def change(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        e = e.repeat_interleave(size, 0)[: len(e)]
        return x, e * (1 + 2.0**-22 * torch.randint(-2, 3, e.shape, generator=g))

    return change


def near_copies(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return near_copies_in_groups_of(int(_uniform(2, 41, g)))(x, e, g)


def permutations(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.rand(e.shape, generator=g).argsort(dim=1)
    return x, e[:1].expand_as(e).gather(1, order)


def constant_rows(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x[:, :1].expand_as(x).clone(), e


def sparse(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    keep = _uniform(0.02, 0.2, g)
    return x * (torch.rand(x.shape, generator=g) < keep), e * (torch.rand(e.shape, generator=g) < keep)


def long_coordinate(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    factor = 10.0 ** _uniform(2, 5, g)
    x[:, 0] *= factor
    e[:, 0] *= factor
    return x, e


def scale_of_each_coordinate(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    scales = 10.0 ** (-3 + 6 * torch.rand(x.shape[1], generator=g))
    return x * scales, e * scales


def lengths(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        x * 10.0 ** (-2 + 4 * torch.rand(len(x), 1, generator=g)),
        e * 10.0 ** (-2 + 4 * torch.rand(len(e), 1, generator=g)),
    )


def heavy_tails(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        (x / torch.randn(x.shape, generator=g)).clamp(-1e6, 1e6),
        (e / torch.randn(e.shape, generator=g)).clamp(-1e6, 1e6),
    )


def low_rank(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    rank = int(_uniform(1, 4, g))
    basis = torch.randn(rank, x.shape[1], generator=g)
    return x[:, :rank].repeat(1, rank)[:, :rank] @ basis, e[:, :rank].repeat(1, rank)[:, :rank] @ basis


def on_a_grid(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return (x * 3).round() / 3, e.round()


def bfloat16_values(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x.bfloat16().float(), e.bfloat16().float()


def midpoints(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    first, second = (torch.randint(len(e), (len(x),), generator=g) for _ in range(2))
    return (e[first] + e[second]) / 2, e


def close_neighbours(x: Tensor, e: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, e.cumsum(0) * 0.01


CHANGES: tuple[Change, ...] = (
    *(one_long_code, ten_long_codes, zero_rows, every_second_row_zero, unit_codes, repeated_rows, tiny, huge),
    *(two_clusters, four_clusters, offset, collapsed, half_negated, near_copies, permutations, constant_rows),
    *(sparse, long_coordinate, scale_of_each_coordinate, lengths, heavy_tails, low_rank, on_a_grid),
    *(bfloat16_values, midpoints, close_neighbours),
)


@dataclass(frozen=True)
class Awkward:
    """Random rows and codes of a size, changed in turn; all of it follows from ``seed``."""

    size: Size
    changes: tuple[Change, ...]
    metric: str = "l2"
    seed: int = 0

    def __str__(self) -> str:
        names = " + ".join(change.__name__ for change in self.changes)
        return f"{self.size.n} x {self.size.d} x {self.size.k} {self.metric}, seed {self.seed}: {names}"

    def draw(self) -> tuple[Tensor, Tensor]:
        """x ``[N, D]`` and codebook ``[K, D]``."""
        g = torch.Generator().manual_seed(self.seed)
        x, codebook = gaussian(self.size, g)
        for change in self.changes:
            x, codebook = change(x, codebook, g)
        return x.contiguous(), codebook.contiguous()


TABLE: dict[str, tuple[Change, ...]] = {
    "one code of norm 1e7": (one_long_code,),
    "ten codes of norm 1e4": (ten_long_codes,),
    "rows of zeros": (zero_rows,),
    "rows of zeros, unit codes": (unit_codes, zero_rows),
    "every second row zero, unit codes": (unit_codes, every_second_row_zero),
    "values times 1e-30": (tiny,),
    "values times 1e18": (huge,),
    "lengths 1e-2 to 1e2": (lengths,),
    "near-copies in groups of 8": (near_copies_in_groups_of(8),),
    "near-copies in groups of 31": (near_copies_in_groups_of(31),),
    "near-copies in groups of 37": (near_copies_in_groups_of(37),),
    "two clusters 1e4 apart": (far_clusters,),
    "four clusters": (four_clusters,),
    "half of a collapsed codebook negated": (collapsed, half_negated),
    "Cauchy coordinates": (heavy_tails,),
    "one long coordinate": (long_coordinate,),
    "permutations of one code, constant rows": (permutations, constant_rows),
    "codes and rows on a line": (low_rank,),
    "rows on thirds of the codes' grid": (on_a_grid,),
    "sparse": (sparse,),
    "midpoints": (midpoints,),
    "close neighbours on a curve": (close_neighbours,),
}


def reason() -> str | None:
    """Why nothing can be measured here, or None."""
    return native.unavailable_reason()


def slowdown(awkward: Awkward, budget: Budget) -> Pairs:
    """Pairs of a search of random rows and codes and one of ``awkward``, of one size.

    Raises:
        AssertionError: some rows have another code when they are searched by themselves.
    """
    metric = awkward.metric
    x, codebook = awkward.draw()
    plain_x, plain = gaussian(awkward.size, torch.Generator().manual_seed(awkward.seed))
    found = native.nearest_code(x[None], codebook, metric, "exact")[0]
    some = native.nearest_code(x[None, :40], codebook, metric, "exact")[0]
    assert torch.equal(found[:40], some), f"{awkward} depends on its batch"
    return measure_pairs(
        lambda: native.nearest_code(plain_x[None], plain, metric, "exact"),
        lambda: native.nearest_code(x[None], codebook, metric, "exact"),
        timer=processor_timer(),
        budget=budget,
    )


def table(budget: Budget, size: Size = SIZE) -> Iterator[tuple[str, float]]:
    """Each of ``TABLE`` with the median ratio."""
    for name, changes in TABLE.items():
        yield name, slowdown(Awkward(size, changes), budget).ratio.median


def compositions(seed: int) -> Iterator[Awkward]:
    """One to three changes, of any sizes, without end."""
    choice = random.Random(seed)
    while True:
        size = Size(2048, choice.choice((4, 8, 16, 32, 64, 100)), choice.choice((64, 256, 1024)))
        changes = tuple(choice.sample(CHANGES, choice.randint(1, 3)))
        metric = "cosine" if choice.random() < 0.2 else "l2"
        yield Awkward(size, changes, metric, choice.randrange(10**6))


_FIRST = Budget(seconds=0.02, sample_s=0.002, min_pairs=3, max_pairs=5)
_AGAIN = Budget(seconds=0.2, sample_s=0.005, min_pairs=5, max_pairs=15)


def find_worst(seconds: float, seed: int = 0) -> Iterator[str]:
    """A line for each input that is worse than all before, and one at the end."""
    deadline, worst, tried, above = Deadline(seconds), 0.0, 0, 0
    for awkward in compositions(seed):
        if deadline.left <= 0:
            break
        tried += 1
        if (ratio := slowdown(awkward, _FIRST).ratio.median) > 3.0:
            above += 1
        # Measured again before it is believed.
        if ratio > worst and (ratio := slowdown(awkward, _AGAIN).ratio.median) > worst:
            worst = ratio
            yield f"{ratio:6.1f}x  {awkward}"
    yield f"{tried} inputs, {above} above 3x, the worst {worst:.1f}x"
