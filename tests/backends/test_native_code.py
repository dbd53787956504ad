"""The machine code of the narrow sweeps: sums stay in registers, one copy of each."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from vq_kernels.backends import native

# first pass -> instruction set, product and another that tells it from its like, registers, products (three
# vectors of rows by four or eight codes, of seven bits two each), values that may lie on the stack
SWEEPS = {
    "int8 avx2": ("avx2", "vpmaddubsw", None, "ymm", 24, 6),  # one sum has no register
    "int16 avx2": ("avx2", "vpmaddwd", "vpmaddubsw", "ymm", 12, 0),
    "int8 avxvnni": ("avxvnni", "vpdpbusd", None, "ymm", 12, 0),
    "int8 avx512vnni": ("avx512vnni", "vpdpbusd", None, "zmm", 24, 0),
    "bfloat16 avx512bf16": ("avx512bf16", "vdpbf16ps", None, "zmm", 24, 0),
}


def _loops(product: str, without: str | None, register: str) -> list[list[str]]:
    """The instructions from the first to the last of the products of each full sweep's inner loop."""
    if (reason := native.unavailable_reason()) is not None:
        pytest.skip(reason)
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    from vq_kernels import _C  # type: ignore[attr-defined]

    command = ["objdump", "-dC", "--no-show-raw-insn", "--no-addresses", _C.__file__]
    text = subprocess.check_output(command, text=True)
    found = []
    for function in re.findall(r"narrow_sweep<3>\([^\n]*>:\n(.*?)\n\n", text, re.S):
        if without and without in function:
            continue
        lines = function.splitlines()
        at = [i for i, line in enumerate(lines) if product in line and register in line]
        if at:
            found.append(lines[at[0] : at[-1] + 1])
    return found


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_sweep_keeps_its_sums_in_registers(sweep: str) -> None:
    """Some compilers keep every sum twice, and half of the time goes into moving them (65 moves a round)."""
    isa, product, without, register, products, most_stack = SWEEPS[sweep]
    if isa not in native.cpu_features()["compiled"]:
        pytest.skip(f"{isa} was not compiled in")
    loops = _loops(product, without, register)
    assert loops
    for loop in loops:
        assert sum(product in line for line in loop) == products
        moves = [line for line in loop if re.search(rf"vmov\w+\s+%{register}\d+,%{register}\d+", line)]
        stack = [line for line in loop if re.search(r"vmov.*\(%r[sb]p", line)]
        assert len(moves) <= 8, moves
        assert len(stack) <= most_stack, stack
