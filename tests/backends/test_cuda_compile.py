"""What nvcc makes of the CUDA kernels: registers, spills and matrix instructions, without a GPU.

Read off the installed native module where it was built for the target; where it was not, a few of the
sources are compiled (once per content, into ``build/cuda_compile``). Skips without a disassembler, or
without either. The targets that ``make test`` does not build for are left to ``MARKS=slow``.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_host import CSRC, KERNELS, ROOT, digest, locked, run_compiler

from vq_kernels.build_info import read_build_info

TARGETS = {"sm_80": "80", "sm_90a": "90a", "sm_100": "100f"}
SOURCES = ("search_mma_half.cu", "statistics.cu")  # compiled where nothing was built
HOPPER_SOURCES = ("hopper_search.cu",)  # and for sm_90a
CACHE = ROOT / "build" / "cuda_compile"
FLAGS = ["-std=c++17", "-O3", "--fmad=false", "--expt-relaxed-constexpr", f"-I{CSRC}"]

pytestmark = pytest.mark.timeout(1800)  # a target takes minutes of a core
targets = pytest.mark.parametrize(
    "target", [pytest.param(t, marks=() if t == "sm_90a" else pytest.mark.slow) for t in TARGETS]
)


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int  # bytes of local memory: spills, and arrays that are not in registers
    instructions: tuple[str, ...]


@functools.cache
def disassembler() -> str:
    """cuobjdump of the toolkit, or the one that triton carries."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        found = shutil.which(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    if found is None:
        pytest.skip("no cuobjdump: neither a toolkit's nor triton's")
    return found


def source_files() -> list[Path]:
    return [*sorted(CSRC.glob("*.h")), *sorted(KERNELS.iterdir())]


def built_module(arch: str) -> list[Path]:
    """The native module, if it was built from sources as they are now for this target."""
    info = read_build_info()
    modules = sorted((ROOT / "vq_kernels").glob("_C*.so"))
    if (
        info is None
        or not modules
        or not info["cuda"]["built"]
        or f"{arch}-real" not in info["cuda"]["targets"]
    ):
        return []
    newest = max(path.stat().st_mtime for path in source_files())
    return [path for path in modules if path.stat().st_mtime >= newest]


def compiled(arch: str) -> list[Path]:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip(f"the native module has no {arch} code and there is no nvcc to compile some")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    folder = CACHE / digest(source_files(), version, *FLAGS)
    sources = [*SOURCES, *(HOPPER_SOURCES if arch == "90a" else ())]
    outputs = [folder / f"{Path(name).stem}.{arch}.o" for name in sources]

    def compile_one(source: str, output: Path) -> None:
        if not output.exists():
            generate = f"-gencode=arch=compute_{arch},code=sm_{arch}"
            part = output.with_suffix(".part")
            run_compiler([nvcc, *FLAGS, generate, "-c", str(KERNELS / source), "-o", str(part)])
            part.rename(output)

    with (
        locked(CACHE / f"lock-{arch}"),
        concurrent.futures.ThreadPoolExecutor(min(2, len(os.sched_getaffinity(0)))) as pool,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        list(pool.map(compile_one, sources, outputs))
    return outputs


def dump(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [disassembler(), *arguments, str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cuobjdump cannot read {path.name}: {(done.stdout + done.stderr).strip()[:200]}")
    return done.stdout


# A kernel, or the opcode of an instruction without its predicate.
SASS = re.compile(
    r"^[ \t]+(?:Function : (\S+)|/\*[0-9a-f]+\*/[ \t]+(?:@!?U?P\w+[ \t]+)?([A-Z][A-Z0-9.]*))", re.MULTILINE
)


def disassembled(path: Path, arch: str) -> dict[str, list[str]]:
    """The opcodes of each function, by its mangled name, kept for the next time: a module takes 45 s."""
    key = digest([path], disassembler(), SASS.pattern)
    kept = CACHE / f"{key}.{path.name}.{arch}.opcodes.gz"
    if not kept.exists():
        code: dict[str, list[str]] = {}
        name = ""
        for match in SASS.finditer(dump(path, "-sass", "-arch", f"sm_{arch}")):
            if match[1]:
                name = match[1]
                code[name] = []
            else:
                code[name].append(match[2])
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"*.{path.name}.{arch}.opcodes.gz"):
            old.unlink()
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_bytes(gzip.compress(json.dumps(code).encode(), 1))
        part.rename(kept)
    return dict(json.loads(gzip.decompress(kept.read_bytes())))


@functools.cache
def kernels(target: str) -> dict[str, Kernel]:
    """Every kernel of ours that there is code for the target of, by its mangled name."""
    arch = TARGETS[target]
    found: dict[str, Kernel] = {}
    for path in built_module(arch) or compiled(arch):
        code = disassembled(path, arch)
        usage = dump(path, "--dump-resource-usage", "-arch", f"sm_{arch}")
        for name, registers, stack in re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)", usage):
            if "kernel" in name and "vq_cuda" in name and name in code:
                found[name] = Kernel(name, int(registers), int(stack), tuple(code[name]))
    assert found, f"no kernels for {target}"
    return found


def count(kernel: Kernel, *prefixes: str) -> int:
    return sum(i.startswith(prefixes) for i in kernel.instructions)


# Bytes of stack, by target and part of a kernel's name: the first pass on rows of more than 64 dimensions,
# held to the 168 registers that let three blocks share a multiprocessor.
SPILLS = {("sm_100", "search_mma_kernelI6__halfLi1ELNS_8Epilogue"): 16}


@targets
def test_nothing_spills(target: str) -> None:
    spilling = {k.name: k.stack for k in kernels(target).values() if k.stack != 0 or count(k, "LDL", "STL")}
    for (known, part), stack in SPILLS.items():
        spilling = {n: s for n, s in spilling.items() if not (known == target and part in n and s <= stack)}
    assert not spilling, json.dumps(spilling, indent=1)


@targets
def test_registers_leave_room_for_two_blocks(target: str) -> None:
    """Blocks have 128 or 256 threads of 65,536 registers: more than 255 or 128 would leave one block."""
    for k in kernels(target).values():
        threads = 128 if "search" in k.name else 256
        assert 2 * threads * k.registers <= 65536, (k.name, k.registers)


@targets
def test_search_uses_the_matrix_units(target: str) -> None:
    matrix = [k for k in kernels(target).values() if "search_mma" in k.name]
    assert matrix
    for k in matrix:
        products = count(k, "HMMA.16816.F32")
        # Per 16 dimensions, product and 16 rows: 8 column tiles; two row tiles are 16.
        assert products >= 8, k.name
        assert count(k, "LDSM") > 0, "fragments do not come through ldmatrix"
        assert count(k, "LDGSTS") > 0, "the codebook does not come through cp.async"


# search_mma_kernel<parts, products, epilogue, deep, chunked, row tiles>, as names are mangled
FIRST_PASS = re.compile(r"search_mma_kernelI6__halfLi1ELNS_8EpilogueE1ELb[01]ELb0ELi([12])E")


@targets
def test_the_first_pass_leaves_room_for_three_blocks(target: str) -> None:
    """One product of float16 parts, 128 threads: 12 warps a multiprocessor, whose waits fill one another."""
    first = [(k, match[1]) for k in kernels(target).values() if (match := FIRST_PASS.search(k.name))]
    assert len(first) == 3  # up to 64 dimensions, above, and above with 64 rows
    for k, row_tiles in first:
        assert 3 * 128 * k.registers <= 65536, (k.name, k.registers)
        assert count(k, "HMMA.16816.F32") >= 8 * int(row_tiles)


def test_minima_of_three_are_one_instruction_on_hopper() -> None:
    """Of 16 columns of two to four rows: a pair of columns costs one of them and three of two at most."""
    packed = [
        k
        for k in kernels("sm_90a").values()
        if re.search(r"search_mma_\w*I\w+Li1ELNS_8EpilogueE[12]E", k.name)
    ]
    assert packed
    for k in packed:
        assert count(k, "VIMNMX3") >= 8, k.name


def test_hopper_search_uses_warpgroup_products_and_bulk_copies() -> None:
    """By its own target alone; the assembler would say so if it had to serialise them, and spill."""
    hopper = [k for k in kernels("sm_90a").values() if "hopper_search" in k.name]
    assert len(hopper) == 12  # three depths, two dtypes, with and without the second best
    for k in hopper:
        assert count(k, "HGMMA") >= 4, k.name
        assert count(k, "UBLKCP") >= 2, "codes do not come through the copy engine"
        assert count(k, "VIMNMX3") >= 30, "minima of three are not one instruction"
        assert count(k, "USETMAXREG") == 2, "the warpgroup that copies keeps its registers"
        # A column goes into each of 64 scores by a multiplication, in the units that take no minima.
        last = max(i for i, opcode in enumerate(k.instructions) if opcode.startswith("HGMMA"))
        epilogue = k.instructions[last : last + 420]
        assert epilogue.count("IMAD") >= 60, k.name
        assert epilogue.count("LEA") <= 8, k.name
        assert k.registers <= 96, "five warpgroups do not fit"


@targets
def test_statistics_use_integer_atomics_only(target: str) -> None:
    atomics = [
        i
        for k in kernels(target).values()
        for i in k.instructions
        if i.startswith(("RED", "ATOM")) and not i.startswith("REDUX")
    ]
    assert atomics
    assert not [i for i in atomics if re.search(r"\.F(16|32|64)|\.BF16", i)], sorted(set(atomics))


def test_no_array_of_arrays_of_classes_with_initial_values() -> None:
    """nvcc 13.0 gives ``Best best[2][2]`` its initial values in the first row alone, on the device: the
    scores of half the rows were compared with 0. The host build of the same sources is right."""
    text = "\n".join(path.read_text() for path in source_files())
    struct = re.compile(r"\bstruct (\w+)[^;{]*\{(.*?)\n\};", re.DOTALL)
    bodies = struct.findall(text)
    initialised = {name for name, body in bodies if re.search(r"^\s+[\w:<>*]+ \w+ = ", body, re.MULTILINE)}
    assert "Best" in initialised
    # Fields of structs are left out: those are shared memory, which nothing initialises.
    arrays = re.findall(r"\b(\w+)(?:<[^>;]*>)? \w+\[[^\]]+\]\[", struct.sub("", text))
    assert not [name for name in arrays if name in initialised]
