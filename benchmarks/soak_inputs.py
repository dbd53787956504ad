"""Rows and codebooks for the soak test: ordinary ones, and ones that make a fast first pass err."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Draw = Callable[["Size", torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Size:
    """N rows of D numbers against K codes."""

    n: int
    d: int
    k: int


def _normal(rows: int, size: Size, g: torch.Generator) -> Tensor:
    return torch.randn(rows, size.d, generator=g)


def _pick(count: int, size: Size, g: torch.Generator) -> Tensor:
    return torch.randint(size.k, (count,), generator=g)


def _log_uniform(rows: int, low: float, high: float, g: torch.Generator) -> Tensor:
    return 10.0 ** (low + (high - low) * torch.rand(rows, 1, generator=g))


def gaussian(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every row far from every code: the most open codes of all ordinary data."""
    return _normal(size.n, size, g), _normal(size.k, size, g)


def trained(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows scattered around codes."""
    codebook = _normal(size.k, size, g)
    return codebook[_pick(size.n, size, g)] + 0.4 * _normal(size.n, size, g), codebook


def lengths(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Norms from 1e-2 to 1e2 on both sides."""
    x, codebook = gaussian(size, g)
    return x * _log_uniform(size.n, -2, 2, g), codebook * _log_uniform(size.k, -2, 2, g)


def outlier(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """One code far from all others, and one row beside it."""
    x, codebook = gaussian(size, g)
    codebook[-1] *= float(_log_uniform(1, 1, 12, g))
    x[-1] = 1.01 * codebook[-1]
    return x, codebook


def offset(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A common offset up to 1e6 times the spread."""
    x, codebook = gaussian(size, g)
    shift = float(_log_uniform(1, 1, 6, g)) * torch.randn(1, size.d, generator=g)
    return x + shift, codebook + shift


def clusters(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clusters ten times as far apart as they are wide: int8 leaves a whole cluster open."""
    centres = 10.0 * torch.randn(8, size.d, generator=g)
    x, codebook = gaussian(size, g)
    return (
        x + centres[torch.randint(8, (size.n,), generator=g)],
        codebook + centres[torch.randint(8, (size.k,), generator=g)],
    )


def heavy_tails(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cauchy coordinates: one number takes the whole range of a scale."""
    x, codebook = (t / _normal(len(t), size, g) for t in gaussian(size, g))
    return x.clamp(-1e6, 1e6), codebook.clamp(-1e6, 1e6)


def long_coordinate(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """One coordinate a thousand times the others: they vanish in one scale for all."""
    x, codebook = gaussian(size, g)
    x[:, 0] *= 1e3
    codebook[:, 0] *= 1e3
    return x, codebook


def sparse(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A twentieth of the numbers is not zero: zero rows and equal codes among them."""
    x, codebook = gaussian(size, g)
    return (
        x * (torch.rand(x.shape, generator=g) < 0.05),
        codebook * (torch.rand(codebook.shape, generator=g) < 0.05),
    )


def any_scale(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Everything times one factor from 1e-38 to 1e30, rows of other lengths than codes."""
    x, codebook = gaussian(size, g)
    factor = float(_log_uniform(1, -38, 30, g))
    return x * factor * float(_log_uniform(1, -3, 3, g)), codebook * factor


def all_residuals_one_way(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers just short of half a step of the int8 grid from it, all to one side, and pairs of codes that
    differ by about what is lost."""
    step = 1.0 / 127.0
    x = (torch.randint(0, 12, (size.n, size.d), generator=g) + 0.499) * step
    x[:, 0] = 1.0
    codebook = (torch.randint(0, 12, (size.k, size.d), generator=g) + 0.499) * step
    codebook[1::2] = codebook[: 2 * (size.k // 2) : 2] + 0.002 * step
    codebook[:, 0] = 1.0 + 0.01 * torch.rand(size.k, generator=g)
    return x, codebook


def midpoints(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows half way between two codes, and a hair off."""
    codebook = _normal(size.k, size, g)
    a, b = codebook[_pick(size.n, size, g)], codebook[_pick(size.n, size, g)]
    hair = _log_uniform(size.n, -9, -2, g) * torch.randn(size.n, 1, generator=g).sign()
    return (a + b) / 2 + hair * (a - b), codebook


def near_copies(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Groups of up to forty codes some units in the last place apart."""
    group = int(torch.randint(2, 41, (1,), generator=g))
    few = _normal(math.ceil(size.k / group), size, g)
    codebook = few.repeat_interleave(group, 0)[: size.k]
    codebook = codebook * (1 + 2.0**-22 * torch.randint(-2, 3, codebook.shape, generator=g))
    return few[torch.randint(len(few), (size.n,), generator=g)] + 0.1 * _normal(size.n, size, g), codebook


def grid(size: Size, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Small whole numbers: many ties, equal codes and zero rows."""
    x = torch.randint(-2, 3, (size.n, size.d), generator=g).float() / 2
    return x, torch.randint(-1, 2, (size.k, size.d), generator=g).float()


# Of these any number of rows can be checked quickly; the others leave near-ties to rational arithmetic.
PLENTY: dict[str, Draw] = {
    f.__name__: f
    for f in (
        gaussian,
        trained,
        lengths,
        outlier,
        clusters,
        heavy_tails,
        long_coordinate,
        any_scale,
        offset,
        all_residuals_one_way,
    )
}
FEW: dict[str, Draw] = {f.__name__: f for f in (sparse, midpoints, near_copies, grid)}
