"""Tile sizes per architecture: ``{architecture: {products: [(largest D, Config values), ...]}}``.

Written by ``python -m benchmarks.tune`` on a GPU; until a GPU has run it, chosen by compiling for
the target and reading registers, shared memory and instructions per (row, code) pair (see
``benchmarks/NOTES.md``). Architecture 0 is the interpreter, kept small so that tests on a CPU see
several tiles. The values are rows, codes, depth (0: all of D), warps, stages, register limit.
"""

from __future__ import annotations

_Values = tuple[int, int, int, int, int, int | None]
_ANY_D = 1 << 30

TABLE: dict[int, dict[int, list[tuple[int, _Values]]]] = {
    0: {
        1: [(32, (64, 64, 0, 4, 1, None)), (_ANY_D, (64, 64, 32, 4, 1, None))],
        2: [(32, (64, 64, 0, 4, 1, None)), (_ANY_D, (64, 64, 32, 4, 1, None))],
        3: [(32, (64, 64, 0, 4, 1, None)), (_ANY_D, (64, 64, 32, 4, 1, None))],
    },
}
