"""``python -m benchmarks.first_passes``: what the first pass of a search costs, and what awkward inputs cost.

Each search path of this CPU (``benchmarks/paths.py``) against the float32 sweep of the same instructions, in
pairs measured in turn, on ordinary sizes; then awkward rows and codes (``cliffs.py``) against random
ones of their size, path by path: a cliff is a ratio far above 1. Indices of all paths are compared first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vq_kernels.backends import native

from .cliffs import SIZE as AWKWARD
from .cliffs import TABLE, Awkward
from .measure import Budget, Pairs, measure_pairs, processor_timer
from .paths import PATHS, on_path, usable_paths
from .soak_inputs import Size

SIZES = (
    *(Size(65536, 8, 128), Size(65536, 64, 512), Size(16384, 64, 8192), Size(8192, 256, 8192)),
    *(Size(16384, d, k) for d, k in ((16, 512), (32, 256), (64, 128), (128, 128))),
)


def compare(one: tuple[str, Tensor, Tensor], other: tuple[str, Tensor, Tensor], budget: Budget) -> Pairs:
    """Pairs of searches on (path, x, codebook)."""

    def call(path: str, x: Tensor, codebook: Tensor) -> Tensor:
        with on_path(path):
            return native.nearest_code(x, codebook, "l2", "exact")

    return measure_pairs(lambda: call(*one), lambda: call(*other), timer=processor_timer(), budget=budget)


def check(paths: Sequence[str], x: Tensor, codebook: Tensor) -> None:
    """AssertionError unless all paths find the same codes."""
    found = []
    for path in paths:
        with on_path(path):
            found.append(native.nearest_code(x, codebook, "l2", "exact"))
    assert all(torch.equal(found[0], other) for other in found), f"{paths} differ"


def lines(paths: Sequence[str], budget: Budget) -> Iterator[str]:
    """The tables, line by line."""
    base = [path for path in paths if PATHS[path][1] == "float32"][-1]
    narrow = [path for path in paths if PATHS[path][1] != "float32"] or [base]
    yield f"N x D x K, ms; times as fast as {base}"
    for size in SIZES:
        x, codebook = _batch(Awkward(size, ()))
        check([base, *narrow], x, codebook)
        for path in narrow:
            name = f"{size.n} x {size.d} x {size.k}  {path:12}"
            yield f"{name} {compare((path, x, codebook), (base, x, codebook), budget)}"
            half = compare((path, x.bfloat16(), codebook), (path, x, codebook), budget)
            yield f"{name} {half}, bfloat16 rows beside float32 ones"
    shown = ", ".join([base, *narrow])
    yield f"{AWKWARD.n} x {AWKWARD.d} x {AWKWARD.k}, times random rows and codes: {shown}"
    plain = _batch(Awkward(AWKWARD, ()))
    for kind, changes in TABLE.items():
        awkward = _batch(Awkward(AWKWARD, changes))
        check([base, *narrow], *awkward)
        ratios = [compare((path, *plain), (path, *awkward), budget).ratio.median for path in (base, *narrow)]
        yield f"{kind:40} " + "  ".join(f"{ratio:6.1f}" for ratio in ratios)


def _batch(awkward: Awkward) -> tuple[Tensor, Tensor]:
    """Rows ``[1, N, D]`` and codes."""
    x, codebook = awkward.draw()
    return x[None], codebook


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, each line as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_passes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for the pairs of a line (0.5)")
    given = parser.parse_args(arguments)
    for line in lines(usable_paths(), Budget(seconds=given.seconds)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
