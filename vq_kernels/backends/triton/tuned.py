"""Tile sizes per architecture: ``{architecture: {products: [(largest D, Config values), ...]}}``.

A block named for a generation holds what compiling for it showed to be good: no spills, two programs
on a multiprocessor where D allows, fewest instructions for a (row, code) pair
(``tests/backends/test_triton_compile.py``). A block named for a compute capability, such as ``_SM90``, is
written by ``python -m benchmarks.tune --write``: a line that names a GPU and a date was found by running
on it, the others are as they were before. Architecture 0 is the interpreter, kept small so that tests
on a CPU see several tiles. The values are rows, codes, depth (0: all of D), warps, stages, register
limit (None: none), resident rows.
"""

from __future__ import annotations

_Values = tuple[int, int, int, int, int, int | None, bool]
_Rules = dict[int, list[tuple[int, _Values]]]
_ANY = 1 << 30

_INTERPRETER: _Rules = {
    products: [
        (32, (64, 64, 0, 4, 1, None, True)),
        (64, (64, 64, 32, 4, 1, None, True)),
        (_ANY, (64, 64, 32, 4, 1, None, False)),
    ]
    for products in (1, 2, 3)
}

# At most 99 KiB of shared memory, so that the table serves 8.6, 8.9 and 12.0 too.
_AMPERE: _Rules = {
    1: [
        (32, (128, 32, 16, 4, 3, None, True)),
        (64, (128, 32, 0, 4, 3, None, True)),
        (128, (128, 32, 64, 4, 3, None, True)),
        (256, (128, 32, 64, 4, 2, None, True)),
        (_ANY, (64, 64, 64, 4, 2, None, False)),
    ],
    2: [
        (64, (128, 32, 32, 4, 3, None, True)),
        (128, (64, 32, 32, 4, 2, None, True)),
        (256, (64, 32, 32, 4, 2, None, True)),
        (_ANY, (64, 32, 64, 4, 2, None, False)),
    ],
    3: [
        (64, (128, 32, 32, 4, 3, None, True)),
        (128, (64, 64, 32, 4, 2, None, True)),
        (256, (64, 32, 32, 4, 2, None, True)),
        (_ANY, (64, 32, 64, 4, 2, None, False)),
    ],
}

# One product of parts is one asynchronous instruction with a barrier of its own: no short chunks.
_BLACKWELL: _Rules = {
    1: [
        (64, (128, 128, 0, 8, 3, None, True)),
        (128, (128, 128, 0, 8, 2, None, True)),
        (256, (128, 64, 128, 8, 2, None, True)),
        (_ANY, (128, 128, 64, 8, 3, None, False)),
    ],
    2: [
        (64, (128, 128, 0, 8, 2, None, True)),
        (128, (128, 64, 0, 8, 2, None, True)),
        (_ANY, (128, 64, 64, 8, 2, None, False)),
    ],
    3: [
        (64, (128, 128, 0, 8, 2, None, True)),
        (128, (128, 64, 0, 8, 2, None, True)),
        (_ANY, (128, 64, 64, 8, 2, None, False)),
    ],
}

# Written by python -m benchmarks.tune: a line without a GPU's name was not tuned.
_SM90: _Rules = {
    1: [
        (32, (128, 128, 0, 8, 3, 128, True)),
        (64, (128, 128, 16, 8, 3, 128, True)),  # nvidia-h100-80gb-hbm3, 2026-11-26
        (128, (128, 128, 32, 8, 2, 128, True)),  # nvidia-h100-80gb-hbm3, 2026-11-26
        (256, (128, 128, 64, 8, 2, None, True)),  # nvidia-h100-80gb-hbm3, 2026-11-26
        (_ANY, (128, 128, 32, 8, 3, None, False)),
    ],
    2: [
        (32, (128, 128, 16, 8, 3, 128, True)),
        (64, (128, 128, 16, 8, 2, 128, True)),
        (128, (128, 64, 64, 8, 2, 128, True)),
        (256, (128, 64, 64, 8, 2, None, True)),
        (_ANY, (128, 64, 64, 8, 2, None, False)),
    ],
    3: [
        (32, (128, 128, 16, 8, 3, 128, True)),
        (64, (128, 128, 32, 8, 2, 128, True)),  # nvidia-h100-80gb-hbm3, 2026-11-26
        (128, (128, 128, 64, 8, 2, None, True)),  # nvidia-h100-80gb-hbm3, 2026-11-26
        (256, (128, 32, 64, 8, 3, None, True)),  # nvidia-h100-80gb-hbm3, 2026-11-26
        (_ANY, (128, 64, 64, 8, 2, None, False)),
    ],
}

# 8.6 and 8.9 have less shared memory than 8.0: what is tuned there is not for them.
TABLE: dict[int, _Rules] = {
    0: _INTERPRETER,
    80: _AMPERE,
    86: _AMPERE,
    90: _SM90,
    100: _BLACKWELL,
    120: _AMPERE,
}
