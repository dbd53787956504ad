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
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# instruction set -> the flags that its sources, *_NAME.cpp, are compiled with; other sources with none
ARM = {
    "neon": ["-march=armv8-a"],
    "dotprod": ["-march=armv8.2-a+dotprod"],
    "i8mm": ["-march=armv8.2-a+dotprod+i8mm"],
}
# The sources of AVX-VNNI as AVX-512 VNNI of 256 bits, which more machines can run.
AVXVNNI_BY_AVX512 = {
    "avx2": AVX2,
    "avxvnni": [*AVX2, "-mbmi2", "-mavx512f", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=256"],
}
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
TILES = ["-mamx-tile", "-include", str(ROOT / "tests" / "native" / "emulated_tiles.h")]
EMULATED_TILES = {
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amxint8": [*AVX512, "-mavx512vnni", "-mamx-int8", *TILES],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-bf16", *TILES],
}
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


def isa_of(path: Path) -> str | None:
    """The instruction set of a source of ``csrc/cpu``, None if it is compiled for any CPU."""
    return path.stem.rpartition("_")[2] if path.stem.rpartition("_")[2] in ISAS[1:] else None


def build(name: str, compiler: str, isas: dict[str, list[str]], *options: str) -> Path:
    """``kernels_test`` of these instruction sets in ``build/NAME``, made anew after a change."""
    sources = [p for p in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")) if (isa_of(p) or "") in ["", *isas]]
    sources.append(PROGRAM)
    headers = sorted((ROOT / "csrc").glob("cpu/*.h")) + sorted((ROOT / "csrc").glob("*.h"))
    headers += sorted(PROGRAM.parent.glob("*.h"))
    shared = [*FLAGS, *(f"-DVQ_HAVE_{isa.upper()}=1" for isa in isas), *options, f"-I{ROOT / 'csrc'}"]
    key = digest([*sources, *headers], *shared, *(flag for flags in isas.values() for flag in flags))
    folder = ROOT / "build" / name / key
    program = folder / "kernels_test"
    with locked(folder.parent / "lock"):
        if program.exists():
            return program
        folder.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / f"{path.stem}.o") for path in sources]
        with ThreadPoolExecutor(2) as pool:
            compiled = [
                pool.submit(
                    run, compiler, *shared, *isas.get(isa_of(path) or "", []), "-c", str(path), "-o", to
                )
                for path, to in zip(sources, objects, strict=True)
            ]
            for job in compiled:
                job.result()
        linked = folder / "linked"
        run(compiler, *FLAGS, "-Wno-error", "-static", *objects, "-o", str(linked))
        linked.rename(program)
    return program


@pytest.fixture(scope="module")
def arm_program() -> Path:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
    return build("native_arm", compiler, ARM)


@pytest.fixture(scope="module")
def emulator() -> str:
    program = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if program is None:
        pytest.skip("no qemu-aarch64 (Debian: qemu-user-static)")
    return program


# Processors: with both options of int8, with dot products alone, with neither.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "processor"), [("neon", "cortex-a57"), ("dotprod", "neoverse-n1"), ("i8mm", "max")]
)
def test_arm_under_emulation(isa: str, processor: str, arm_program: Path, emulator: str) -> None:
    output = run(emulator, "-cpu", processor, str(arm_program), isa)
    assert f"{isa}: " in output
    assert " 0 wrong" in output


@pytest.mark.parametrize(
    ("isa", "processor"), [("dotprod", "cortex-a57"), ("i8mm", "cortex-a57"), ("i8mm", "neoverse-n1")]
)
def test_what_an_arm_processor_lacks_is_not_offered(
    isa: str, processor: str, arm_program: Path, emulator: str
) -> None:
    done = subprocess.run(
        [emulator, "-cpu", processor, str(arm_program), isa], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, f"{isa}: not compiled in, or not on this machine\n")


def test_cases_under_emulation_are_not_left_out(request: pytest.FixtureRequest) -> None:
    """They run wherever there is an emulator, whatever instruction sets this machine has."""
    module = request.node.getparent(pytest.Module)
    assert module is not None
    items = [item for item in request.session.genitems(module) if "emulator" in item.fixturenames]
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    left = list(items)
    conftest.pytest_collection_modifyitems(request.config, left)
    assert len(items) >= 6
    assert left == items


def x86_program(name: str, isas: dict[str, list[str]], needed: str, *options: str) -> str:
    """``kernels_test`` for this machine with sources compiled to stand for what it lacks."""
    compiler = shutil.which("g++")
    if native.unavailable_reason() is not None or needed not in native.cpu_features()["machine"]:
        pytest.skip(f"{needed} is not on this machine, or there is no native module to say so")
    if compiler is None:
        pytest.skip("no g++")
    return str(build(name, compiler, isas, *options))


def test_the_sources_of_avxvnni_with_the_instruction_of_avx512() -> None:
    options = "-DVQ_AVXVNNI_BY_AVX512=1"
    program = x86_program("native_avxvnni", AVXVNNI_BY_AVX512, "avx512vnni", options)
    assert " 0 wrong" in run(program, "avxvnni")


@pytest.mark.parametrize("isa", ["amx", "amxint8"])
def test_matrix_passes_with_tiles_in_plain_loops(isa: str) -> None:
    program = x86_program("native_tiles", EMULATED_TILES, "avx512bf16", "-DVQ_EMULATED_TILES=1")
    assert " 0 wrong" in run(program, isa)


def loops_of(product: str, listing: str) -> list[list[str]]:
    """The instructions of each innermost loop that has 16 of ``product``."""
    lines = re.findall(r"^\s+([0-9a-f]+):\t(\S+)\t?(.*)$", listing, re.M)
    at = {int(address, 16): i for i, (address, _, _) in enumerate(lines)}
    loops = []
    for i, (address, name, operands) in enumerate(lines):
        jump = re.match(r"([0-9a-f]+)", operands) if name.startswith("b.") else None
        if jump and int(jump[1], 16) < int(address, 16):
            body = [n for _, n, _ in lines[at[int(jump[1], 16)] : i + 1]]
            if body.count(product) == 16:
                loops.append(body)
    return loops


@pytest.mark.parametrize(
    ("file", "product"),
    [("kernels_neon.o", "fmla"), ("narrow_dotprod.o", "sdot"), ("narrow_i8mm.o", "smmla")],
    ids=["neon", "dotprod", "i8mm"],
)
def test_arm_multiplies_in_registers(file: str, product: str, arm_program: Path) -> None:
    """The loop of 4 vectors of rows by 4 codes: its 16 products, loads, and little else."""
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    assert objdump is not None, "it comes with the compiler"
    loops = loops_of(product, run(objdump, "-d", "--no-show-raw-insn", str(arm_program.parent / file)))
    assert loops
    assert min(len(body) for body in loops) <= 30
