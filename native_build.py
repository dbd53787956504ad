"""How ``setup.py`` builds the native module: the switches, the choice of targets, CMake and Ninja."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from setuptools.errors import CompileError, PlatformError

from native_tools import (
    FLAG_VARIABLES,
    USE_SKIP,
    Compiler,
    Nvcc,
    ToolFailure,
    build_environment,
    find_cxx,
    find_nvcc,
    first_line,
    run_tool,
    tool_path,
    visible_gpus,
)

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
USE_NO_CUDA = "Set VQ_CUDA=0 to build without the CUDA kernels."


class Switches(NamedTuple):
    """The validated environment variables."""

    build: str
    cuda: str
    archs: tuple[str, ...]


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
        version = ".".join(map(str, nvcc.version))
        reason = f"nvcc {version} ({nvcc.path}) is older than {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]}"
    elif old and not switches.archs:
        reason = f"a GPU of compute capability {', '.join(old)} is older than {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    if reason is None and nvcc is not None:
        return switches.archs or cuda_targets(nvcc.version, gpus), None
    if switches.cuda == "1":
        raise PlatformError(f"VQ_CUDA=1, but {reason}. {USE_NO_CUDA}")
    return (), reason


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
    source: Path, cxx: Compiler, nvcc: Nvcc | None, archs: tuple[str, ...], environ: Mapping[str, str]
) -> Path:
    """Configure and build in the persistent folder, with CUDA if ``archs``; returns the folder.

    ``environ`` comes from :func:`build_environment`.

    Raises :class:`ToolFailure`; its message begins with ``C++`` or ``nvcc``, whichever failed.
    """
    import pybind11

    env = {name: value for name, value in environ.items() if name != "CXX"}  # given as an option
    env["CXXFLAGS"] = " ".join(filter(None, [shlex.join(cxx.flags), env.get("CXXFLAGS")]))
    cuda = nvcc is not None and bool(archs)
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    folder = source / "build" / f"cmake-{tag}-{'cuda' if cuda else 'cpu'}"
    # CMake keeps the flags of its first configuration: others need a folder that is made anew.
    key: dict[str, Any] = {
        "source": str(source),
        "cxx": cxx,
        "flags": {name: env.get(name, "") for name in FLAG_VARIABLES},
        "python": sysconfig.get_config_var("EXT_SUFFIX"),
    }
    # The interpreter, pybind11, cmake and ninja of an isolated build lie in a new folder each time:
    # they are given at every configure and are no part of the key.
    cmake = tool_path("cmake", "CMAKE_BIN_DIR")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": tool_path("ninja", "BIN_DIR"),
        "CMAKE_CXX_COMPILER": cxx.path,
        "CMAKE_CXX_COMPILER_LAUNCHER": ";".join(cxx.launcher),
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
        f"nvcc or C++ configuration ({nvcc.path}, {cxx.path})"
        if nvcc and cuda
        else f"C++ configuration ({cxx.path})"
    )
    run_tool(configure, env, tool)
    run_tool([cmake, "--build", str(folder), "--target", "vq_cpu"], env, f"C++ compilation ({cxx.path})")
    if nvcc is not None and cuda:
        run_tool([cmake, "--build", str(folder), "--target", "vq_cuda"], env, f"nvcc ({nvcc.path})")
    run_tool([cmake, "--build", str(folder)], env, f"C++ compilation or linking ({cxx.path})")
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
    environ, info["environment"], info["ignored_flags"] = build_environment(environ)
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
    native |= {"built": True, "compiler": first_line([cxx.path, "--version"]), "path": cxx.path}
    native |= json.loads((folder / "vq_features.json").read_text())
    cuda_flags = native.pop("cuda_flags")
    if nvcc is not None and archs:
        version = ".".join(map(str, nvcc.version))
        cuda |= {"built": True, "nvcc": version, "path": nvcc.path}
        cuda |= {"targets": list(archs), "flags": cuda_flags}
    return folder, info
