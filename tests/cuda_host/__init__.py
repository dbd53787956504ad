"""The CUDA sources, compiled for the host against a shim of CUDA's built-ins: tests without a GPU.

``load_module()`` builds ``csrc/cuda/*`` with ``runtime.cpp`` and the headers in ``include`` into one
extension, once per content of the sources, in ``build/cuda_host``. ``load_backend()`` makes a backend
of it that serves CPU tensors.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from vq_kernels.backends.cuda import CudaBackend

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
KERNELS = CSRC / "cuda"
CACHE = ROOT / "build" / "cuda_host"
NAME = "vq_cuda_host"

# No contraction: the kernels write fmaf where they want it, as under nvcc's --fmad=false.
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-w"]
# Same results, without a call for each fmaf, and the shim's tensor cores take a fraction of the time.
VECTORS = {"avx2": "-mavx2", "fma": "-mfma", "f16c": "-mf16c"}


def vector_flags() -> list[str]:
    """Flags of the instructions that this machine has, where Linux lists them by these names."""
    listed = Path("/proc/cpuinfo")
    words = set(listed.read_text().split()) if listed.exists() else set()
    return [*VECTORS.values()] if set(VECTORS) <= words else []


def sources() -> list[Path]:
    own = [HERE / "runtime.cpp", HERE / "faulty.cu"]
    return [*sorted(KERNELS.glob("*.cu")), *sorted(KERNELS.glob("*.cpp")), *own]


def digest(paths: list[Path], *words: str) -> str:
    """A name for the content of files and build options."""
    state = hashlib.sha256()
    for path in paths:
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    state.update("\0".join(words).encode())
    return state.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. pytest-xdist workers share the cache."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run_compiler(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def build(compiler: str) -> Path:
    """The path of the extension, compiled if these sources were not compiled before."""
    import pybind11

    headers = [*sorted(CSRC.glob("*.h")), *sorted(KERNELS.glob("*.h")), *sorted(KERNELS.glob("*.cuh"))]
    headers += sorted((HERE / "include").iterdir())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    base = [*FLAGS, *vector_flags()]
    key = digest([*headers, *sources()], compiler, *base, suffix, pybind11.__version__)
    target = CACHE / key / f"{NAME}{suffix}"
    with locked(CACHE / "lock"):
        if target.exists():
            return target
        work = CACHE / f"{key}-work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        include = [HERE / "include", CSRC, KERNELS, pybind11.get_include(), sysconfig.get_path("include")]
        flags = [*base, *(f"-I{path}" for path in include)]
        objects = [work / f"{path.name}.o" for path in sources()]
        commands = [
            [compiler, *flags, "-x", "c++", "-c", str(path), "-o", str(out)]
            for path, out in zip(sources(), objects, strict=True)
        ]
        with concurrent.futures.ThreadPoolExecutor(min(2, len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(run_compiler, commands))
        run_compiler([compiler, "-shared", *map(str, objects), "-o", str(work / target.name)])
        for old in CACHE.iterdir():
            if old.is_dir() and old != work:
                shutil.rmtree(old)
        work.rename(target.parent)
    return target


@functools.cache
def load_module() -> ModuleType:
    """The extension module; skips the test where it cannot be built."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to run the CUDA sources on the host with")
    if os.name != "posix":
        pytest.skip("the host build of the CUDA sources needs a POSIX system")
    path = build(compiler)
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@contextmanager
def machine(
    *,
    reverse: bool = False,
    major: int = 9,
    shared_limit: int = 227 * 1024,
    processors: int = 3,
    certificate: float = 1.0,
    tensor_core_block: int = 16,
) -> Iterator[None]:
    """Another device for a while: the order in which threads run, what it is capable of, how many products
    its tensor cores add at a time, and for experiments a factor on the error bound that certifies results."""
    module = load_module()
    backend = load_backend()
    module.configure(reverse, major, shared_limit, processors)
    module.set_tensor_core_block(tensor_core_block)
    before, backend.bound_scale = backend.bound_scale, certificate
    try:
        yield
    finally:
        module.configure(False, 9, 227 * 1024, 3)
        module.set_tensor_core_block(16)
        backend.bound_scale = before


@functools.cache
def load_backend() -> CudaBackend:
    """A backend called ``cuda_host`` that runs the CUDA kernels on CPU tensors."""
    return CudaBackend(load_module().cuda, device_type="cpu", name="cuda_host")
