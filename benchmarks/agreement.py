"""Do two results agree? Asked before anything is timed, and tie-aware.

Two searches may differ in a row only if the codes they chose are equally near within the rounding
of the arithmetic that the less exact of them uses; the distances that decide this are computed in
float64. Anything else raises, and is not timed.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32 = 2.0**-24
TF32 = 2.0**-10  # conversion by truncation, as tensor cores before sm_100 do it
BFLOAT16 = 2.0**-9
_ROWS_AT_ONCE = 4096


class Disagreement(AssertionError):
    """Two results differ by more than rounding explains."""


def squared_distances(x: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    """|x - e|^2 of each row and the code chosen for it, float64: x ``[R, D]``, indices ``[R]`` -> ``[R]``."""
    return (x.double() - codebook.double()[indices]).square().sum(-1)


def rounding(x: Tensor, codebook: Tensor, *, input_unit: float = 0.0, output_unit: float = 0.0) -> Tensor:
    """By how much two distances of a row may differ and still look equal to a float32 search: ``[R]``.

    A score of D products and three sums is off by at most (D + 4) units of (|x| + |e|)^2 (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1); two scores by twice that.
    ``input_unit`` is the rounding of the factors before multiplication (TF32, bfloat16) and
    ``output_unit`` that of the scores, where they are lower than float32.
    """
    unit = (x.shape[-1] + 4) * FLOAT32 + 2 * input_unit + output_unit
    lengths = x.double().norm(dim=-1) + codebook.double().norm(dim=-1).max()  # [R]
    return 2 * unit * lengths.square()


def check_indices(
    x: Tensor,
    codebook: Tensor,
    ours: Tensor,
    theirs: Tensor,
    *,
    input_unit: float = 0.0,
    output_unit: float = 0.0,
    ours_is_exact: bool = True,
) -> int:
    """Number of rows in which two searches differ, all of them ties within rounding.

    Args:
        x: ``[N, D]``; codebook: ``[K, D]``; ours, theirs: ``[N]`` integers.
        ours_is_exact: also ask that our code is never the farther one, in float64.

    Raises:
        Disagreement: shapes differ, an index is out of range, or a difference is more than a tie.
    """
    if ours.shape != theirs.shape or ours.shape != x.shape[:1]:
        shapes = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        raise Disagreement(f"indices of shapes {shapes} for {len(x)} rows")
    ours, theirs = ours.long(), theirs.long()
    for side, indices in (("ours", ours), ("theirs", theirs)):
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= len(codebook)):
            raise Disagreement(f"{side} has an index outside 0..{len(codebook) - 1}")
    rows = (ours != theirs).nonzero().squeeze(1)
    for part in rows.split(_ROWS_AT_ONCE):
        our_distance = squared_distances(x[part], codebook, ours[part])
        their_distance = squared_distances(x[part], codebook, theirs[part])
        excess = our_distance - their_distance
        allowed = rounding(x[part], codebook, input_unit=input_unit, output_unit=output_unit)
        if ours_is_exact:
            rounded = _float64_rounding(x, our_distance + their_distance)
            _refuse(part, excess, rounded, "ours is farther")
        _refuse(part, excess.abs(), allowed, "no tie within rounding")
    return len(rows)


def _float64_rounding(x: Tensor, distances: Tensor) -> Tensor:
    return 8 * x.shape[-1] * 2.0**-53 * distances


def _refuse(rows: Tensor, excess: Tensor, allowed: Tensor, what: str) -> None:
    bad = ~(excess <= allowed)  # NaN is refused
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise Disagreement(
            f"{what}: {int(bad.sum())} rows, first {int(rows[first])}, "
            f"by {float(excess[first]):.3e} with {float(allowed[first]):.3e} allowed"
        )


def check_against_float64(x: Tensor, codebook: Tensor, indices: Tensor, *, rows: int = 256) -> None:
    """A spread-out sample of rows against the whole codebook in float64: no code may be nearer.

    Raises:
        Disagreement: a code is nearer than the one chosen.
    """
    part = torch.linspace(0, len(x) - 1, min(rows, len(x)), device=x.device).long()
    sample = x[part].double()
    chosen = squared_distances(sample, codebook, indices[part].long())
    for start in range(0, len(part), 16):  # 16 x K x D doubles at once
        block = sample[start : start + 16]
        distances = torch.cdist(block, codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
        distance = chosen[start : start + 16]
        excess = distance - distances.square().amin(1)
        _refuse(part[start : start + 16], excess, _float64_rounding(x, distance), "not the nearest")


def check_close(what: str, ours: Tensor, theirs: Tensor, *, relative: float) -> None:
    """Largest difference within ``relative`` of the largest magnitude.

    Raises:
        Disagreement: otherwise, or if either holds NaN.
    """
    ours, theirs = ours.detach().double().flatten(), theirs.detach().double().flatten()
    if ours.shape != theirs.shape:
        raise Disagreement(f"{what}: {ours.numel()} elements against {theirs.numel()}")
    if ours.numel() == 0:
        return
    scale = float(torch.maximum(ours.abs(), theirs.abs()).max())
    gap = float((ours - theirs).abs().max())
    if not gap <= relative * scale:
        raise Disagreement(f"{what}: differs by {gap:.3e} with {relative * scale:.3e} allowed")
