"""What ``setup.py`` builds the native module with: the switches, the search for tools, CMake and Ninja."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from setuptools.errors import CompileError, PlatformError

OLDEST_NVCC = (12, 0)
OLDEST_GPU = (7, 5)
# The targets of a build for any machine, each with the first nvcc that knows it. GPUs of 8.6 and 8.9
# run the machine code of 8.0; no kernel uses what only they have.
PORTABLE_TARGETS = (
    ("80-real", (12, 0)),
    ("90a-real", (12, 0)),
    ("100f-real", (12, 9)),
    ("120f-real", (12, 9)),
    ("80-virtual", (12, 0)),
)
USE_SKIP = "Set VQ_BUILD=skip to install without the native module."
USE_NO_CUDA = "Set VQ_CUDA=0 to build without the CUDA kernels."


class Switches(NamedTuple):
    """The validated environment variables."""

    build: str
    cuda: str
    archs: tuple[str, ...]


class Nvcc(NamedTuple):
    """A CUDA compiler: its path, version, and what must be added to ``LIBRARY_PATH`` for it."""

    path: str
    version: tuple[int, ...]
    library_path: str | None


class ToolFailure(Exception):
    """A build tool exited with an error; the message names it, ``output`` is what it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def read_switches(environ: Mapping[str, str]) -> Switches:
    """Read and validate ``VQ_BUILD``, ``VQ_CUDA`` and ``VQ_CUDA_ARCHS``."""

    def choice(name: str, *accepted: str) -> str:
        value = environ.get(name, "").strip().lower() or "auto"
        if value not in accepted:
            raise PlatformError(f"{name}={value!r}: accepted are {', '.join(accepted)}")
        return value

    build = choice("VQ_BUILD", "auto", "require", "skip")
    cuda = choice("VQ_CUDA", "auto", "1", "0")
    if build == "skip" and cuda == "1":
        raise PlatformError("VQ_CUDA=1 contradicts VQ_BUILD=skip")
    archs = tuple(a for a in re.split(r"[;,\s]+", environ.get("VQ_CUDA_ARCHS", "")) if a)
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", arch):
            raise PlatformError(f"VQ_CUDA_ARCHS: {arch!r} is not a target such as 80-real, 90a-real or 80")
    return Switches(build, cuda, archs)


def run_tool(command: list[str], environ: Mapping[str, str], what: str) -> str:
    """Run a build tool and raise :class:`ToolFailure` if it fails; errors and warnings are always shown."""
    done = subprocess.run(command, env=dict(environ), text=True, capture_output=True, errors="replace")
    output = done.stdout + done.stderr
    logging.log(logging.WARNING if done.returncode or "warning:" in output else logging.INFO, "%s", output)
    if done.returncode:
        raise ToolFailure(f"{what} failed: `{' '.join(command)}` exited with {done.returncode}", output)
    return output


def first_line(command: list[str]) -> str | None:
    """The first line that a quick query prints, or None if it cannot be run."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=60, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def find_cxx(environ: Mapping[str, str]) -> str | None:
    """Path of the C++ compiler (GCC or Clang): ``CXX``, else the usual names; None if there is none."""
    if environ.get("CXX"):
        name = environ["CXX"].split()[-1]  # CXX may read "ccache g++"
        found = shutil.which(name, path=environ.get("PATH"))
        if found is None:
            raise PlatformError(f"CXX={environ['CXX']!r}: no such program. {USE_SKIP}")
        return found
    names = ("c++", "g++", "clang++")
    return next((p for n in names if (p := shutil.which(n, path=environ.get("PATH")))), None)


def find_nvcc(environ: Mapping[str, str], site_packages: str) -> Nvcc | None:
    """The CUDA compiler: ``CUDACXX``, ``CUDA_HOME``, PATH, /usr/local/cuda, then the pip toolkit."""
    candidates: list[str | None] = [environ.get("CUDACXX")]
    homes = [environ.get("CUDA_HOME"), environ.get("CUDA_PATH")]
    candidates += [str(Path(home, "bin", "nvcc")) for home in homes if home]
    candidates += [shutil.which("nvcc", path=environ.get("PATH")), "/usr/local/cuda/bin/nvcc"]
    toolkits = sorted(Path(site_packages, "nvidia").glob("cu[0-9]*"), reverse=True)
    candidates += [str(toolkit / "bin" / "nvcc") for toolkit in toolkits]
    for path in candidates:
        if not path or not os.access(path, os.X_OK):
            continue
        try:
            text = subprocess.run([path, "--version"], text=True, capture_output=True, timeout=60).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        if match := re.search(r"release [\d.]+, V([\d.]+)", text):
            # The pip toolkit keeps its libraries in lib, where its own nvcc does not look.
            library = Path(path).parents[1] / "lib"
            in_pip = Path(site_packages) in Path(path).parents
            version = tuple(int(n) for n in match.group(1).split("."))
            return Nvcc(path, version, str(library) if in_pip else None)
    return None


def visible_gpus() -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs that ``nvidia-smi`` reports, without repeats."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, text=True, capture_output=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted({(int(m[1]), int(m[2])) for m in re.finditer(r"^(\d+)\.(\d+)\s*$", text, re.M)})


def cuda_targets(nvcc: tuple[int, ...], gpus: list[tuple[int, int]]) -> tuple[str, ...]:
    """Targets to compile for: the GPUs of this machine, or a portable list where there is none."""
    if not gpus:
        return tuple(target for target, since in PORTABLE_TARGETS if nvcc[:2] >= since)
    # From Hopper on, the tensor-core instructions are in the architecture-specific ("a") target only.
    return tuple(f"{major}{minor}{'a' if major >= 9 else ''}-real" for major, minor in gpus)


def plan_cuda(
    switches: Switches, nvcc: Nvcc | None, gpus: list[tuple[int, int]]
) -> tuple[tuple[str, ...], str | None]:
    """CUDA targets to build, or ``()`` and the reason why the CUDA kernels are left out."""
    reason = None
    old = [f"{major}.{minor}" for major, minor in gpus if (major, minor) < OLDEST_GPU]
    if switches.cuda == "0":
        return (), "VQ_CUDA=0"
    if nvcc is None:
        reason = "no nvcc found (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda, the pip toolkit)"
    elif nvcc.version[:2] < OLDEST_NVCC:
        found = ".".join(map(str, nvcc.version))
        reason = f"nvcc {found} ({nvcc.path}) is older than {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]}"
    elif old and not switches.archs:
        reason = f"a GPU of compute capability {', '.join(old)} is older than {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    if reason is None and nvcc is not None:
        return switches.archs or cuda_targets(nvcc.version, gpus), None
    if switches.cuda == "1":
        raise PlatformError(f"VQ_CUDA=1, but {reason}. {USE_NO_CUDA}")
    return (), reason


def tool_path(module: str, attribute: str) -> str:
    """Path of cmake or ninja: the pip package that the build requires, else PATH."""
    name = module + (".exe" if os.name == "nt" else "")
    with contextlib.suppress(ImportError):
        candidate = Path(getattr(__import__(module), attribute), name)
        if candidate.exists():
            return str(candidate)
    if found := shutil.which(module):
        return found
    raise PlatformError(f"{module} is needed to build: pip install {module}. {USE_SKIP}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder: two at once would write the same objects."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        yield
        return
    import fcntl

    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare_folder(folder: Path, key: dict[str, Any]) -> None:
    """Keep the build folder if it was made for the same sources and compilers, else empty it.

    The sources' path is part of the key: in a copied checkout CMake's cache still points to the
    original and would silently build that one.
    """
    stamp = folder / "vq_key.json"
    text = json.dumps(key, sort_keys=True)
    if folder.exists() and (not stamp.exists() or stamp.read_text() != text):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(text)


def cmake_build(
    source: Path, cxx: str, nvcc: Nvcc | None, archs: tuple[str, ...], environ: Mapping[str, str]
) -> Path:
    """Configure and build in the persistent folder, with CUDA if ``archs``; returns the folder.

    Raises :class:`ToolFailure`; its message begins with ``C++`` or ``nvcc``, whichever failed.
    """
    import pybind11

    env = dict(environ)
    cuda = nvcc is not None and bool(archs)
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    folder = source / "build" / f"cmake-{tag}-{'cuda' if cuda else 'cpu'}"
    key = {"source": str(source), "cxx": cxx, "python": sysconfig.get_config_var("EXT_SUFFIX")}
    # The interpreter, pybind11, cmake and ninja of an isolated build lie in a new folder each time:
    # they are given at every configure and are no part of the key.
    cmake = tool_path("cmake", "CMAKE_BIN_DIR")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": tool_path("ninja", "BIN_DIR"),
        "CMAKE_CXX_COMPILER": cxx,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "VQ_WITH_CUDA": "ON" if cuda else "OFF",
    }
    if nvcc is not None and cuda:
        key["nvcc"] = [nvcc.path, *nvcc.version]
        options |= {"CMAKE_CUDA_COMPILER": nvcc.path, "VQ_CUDA_ARCHS": ";".join(archs)}
        if nvcc.library_path:
            env["LIBRARY_PATH"] = os.pathsep.join(filter(None, [nvcc.library_path, env.get("LIBRARY_PATH")]))
    prepare_folder(folder, key)
    configure = [cmake, "-S", str(source), "-B", str(folder), "-G", "Ninja"]
    configure += [f"-D{name}={value}" for name, value in options.items()]
    tool = (
        f"nvcc or C++ configuration ({nvcc.path}, {cxx})" if nvcc and cuda else f"C++ configuration ({cxx})"
    )
    run_tool(configure, env, tool)
    run_tool([cmake, "--build", str(folder), "--target", "vq_cpu"], env, f"C++ compilation ({cxx})")
    if nvcc is not None and cuda:
        run_tool([cmake, "--build", str(folder), "--target", "vq_cuda"], env, f"nvcc ({nvcc.path})")
    run_tool([cmake, "--build", str(folder)], env, f"C++ compilation or linking ({cxx})")
    return folder


def build_native(
    source: Path, switches: Switches, environ: Mapping[str, str]
) -> tuple[Path | None, dict[str, Any]]:
    """Build what this machine can; returns the build folder (None: pure Python) and the build info."""
    native: dict[str, Any] = {"built": False, "reason": None}
    cuda: dict[str, Any] = {"built": False, "reason": None}
    info: dict[str, Any] = {"switches": switches._asdict(), "native": native, "cuda": cuda}
    cxx = None if switches.build == "skip" else find_cxx(environ)
    if cxx is None:
        native["reason"] = (
            "VQ_BUILD=skip" if switches.build == "skip" else "no C++ compiler found (c++, g++, clang++)"
        )
        cuda["reason"] = native["reason"]
        if switches.build == "require" or switches.cuda == "1":
            raise PlatformError(f"The native module was asked for, but {native['reason']}. {USE_SKIP}")
        return None, info
    nvcc = None if switches.cuda == "0" else find_nvcc(environ, sysconfig.get_paths()["purelib"])
    gpus = visible_gpus()
    archs, cuda["reason"] = plan_cuda(switches, nvcc, gpus)
    try:
        folder = cmake_build(source, cxx, nvcc, archs, environ)
    except ToolFailure as failure:
        if not archs or str(failure).startswith("C++"):
            raise CompileError(f"{failure}. {USE_SKIP}") from failure
        if gpus or switches.cuda == "1":
            raise CompileError(f"{failure}. {USE_NO_CUDA}") from failure
        cuda["reason"], archs = f"{failure} (and no GPU is visible)", ()
        try:
            folder = cmake_build(source, cxx, None, (), environ)
        except ToolFailure as second:
            raise CompileError(f"{second}. {USE_SKIP}") from second
    native |= {"built": True, "compiler": first_line([cxx, "--version"]), "path": cxx}
    native |= json.loads((folder / "vq_features.json").read_text())
    cuda_flags = native.pop("cuda_flags")
    if nvcc is not None and archs:
        version = ".".join(map(str, nvcc.version))
        cuda |= {"built": True, "nvcc": version, "path": nvcc.path}
        cuda |= {"targets": list(archs), "flags": cuda_flags}
    return folder, info
