"""The CPU kernels' own test program (``tests/native/kernels_test.cpp``), here and as Arm would run it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cuda_host import digest, locked
from native_support import ISAS

from vq_kernels.backends import native

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "native" / "kernels_test.cpp"
X86 = ("_avx2.cpp", "_avx512.cpp", "_avx512vnni.cpp", "_avx512bf16.cpp", "_amx.cpp")
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]

pytestmark = pytest.mark.timeout(1200)


def run(*command: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_instruction_set_of_this_machine() -> None:
    """The objects of the build folder, every instruction set that is compiled in and on this machine."""
    folders = list((ROOT / "build").glob("cmake-*/CMakeCache.txt"))
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if native.unavailable_reason() is not None or not folders or cmake is None:
        pytest.skip("no build folder with the objects of the native module, or no cmake: make build")
    folder = max(folders, key=lambda path: path.stat().st_mtime).parent
    run(cmake, "--build", str(folder), "--target", "kernels_test")
    output = run(str(folder / "kernels_test"))
    features = native.cpu_features()
    for name in ISAS:
        if name in features["compiled"] and name in features["machine"]:
            assert f"{name}: " in output
    assert output.count(" 0 wrong") == output.count("checks")


@pytest.fixture(scope="module")
def arm_program() -> Path:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
    sources = [p for p in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")) if not p.name.endswith(X86)]
    sources.append(PROGRAM)
    headers = sorted((ROOT / "csrc").glob("cpu/*.h")) + sorted((ROOT / "csrc").glob("*.h"))
    folder = ROOT / "build" / "native_arm" / digest([*sources, *headers], *FLAGS)
    program = folder / "kernels_test"
    with locked(folder.parent / "lock"):
        if program.exists():
            return program
        folder.mkdir(parents=True, exist_ok=True)
        shared = [*FLAGS, "-DVQ_HAVE_NEON=1", f"-I{ROOT / 'csrc'}"]
        objects = [str(folder / f"{path.stem}.o") for path in sources]
        with ThreadPoolExecutor(2) as pool:
            compiled = [
                pool.submit(run, compiler, *shared, "-c", str(path), "-o", to)
                for path, to in zip(sources, objects, strict=True)
            ]
            for job in compiled:
                job.result()
        linked = folder / "linked"
        run(compiler, *FLAGS, "-Wno-error", "-static", *objects, "-o", str(linked))
        linked.rename(program)
    return program


def test_neon_under_emulation(arm_program: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("no qemu-aarch64 (Debian: qemu-user-static)")
    output = run(emulator, str(arm_program), "neon")
    assert "neon: " in output
    assert " 0 wrong" in output


def test_neon_multiplies_in_registers(arm_program: Path) -> None:
    """The loop of 4 vectors of rows by 4 codes: its 16 products, loads of 4 + 1 vectors, and little else."""
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    assert objdump is not None, "it comes with the compiler"
    listing = run(objdump, "-d", "--no-show-raw-insn", str(arm_program.parent / "kernels_neon.o"))
    lines = re.findall(r"^\s+([0-9a-f]+):\t(\S+)\t?(.*)$", listing, re.M)
    at = {int(address, 16): i for i, (address, _, _) in enumerate(lines)}
    loops = []
    for i, (address, name, operands) in enumerate(lines):
        jump = re.match(r"([0-9a-f]+)", operands) if name.startswith("b.") else None
        if jump and int(jump[1], 16) < int(address, 16):
            body = [n for _, n, _ in lines[at[int(jump[1], 16)] : i + 1]]
            if body.count("fmla") == 16:
                loops.append(body)
    assert loops
    assert min(len(body) for body in loops) <= 30
