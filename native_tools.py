"""The tools of the native build: which compilers there are, and what the environment may tell them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from setuptools.errors import PlatformError

USE_SKIP = "Set VQ_BUILD=skip to install without the native module."
# What a C++ compiler, a linker, CMake or nvcc reads flags from.
FLAG_VARIABLES = (
    "CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS",
)  # fmt: skip
# Flags that change results, which are the same on every machine: those of fast-math (when linking, GCC
# takes them for leave to round all subnormals of the process to 0), arithmetic in other registers, and
# link-time optimisation, which moves code between instruction sets.
_CHANGES_RESULTS = re.compile(
    r"-Ofast|-f(fast-math|unsafe-math-optimizations|associative-math|reciprocal-math|finite-math-only"
    r"|no-signed-zeros|no-honor-nans|no-honor-infinities|approx-func|cx-limited-range|single-precision-constant"
    r"|excess-precision=fast|fp-contract=(fast|on)|fp-model=(fast|aggressive)|denormal-fp-math.*|lto(=.*)?)"
    r"|-m(fpmath=.*|daz-ftz|recip.*)|--?use_fast_math|--?(ftz|fmad)=true|--?prec-(div|sqrt)=false"
)


class Compiler(NamedTuple):
    """A C++ compiler as ``CXX`` names it: ``ccache g++ -pthread`` is launcher, path and flags."""

    path: str
    launcher: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


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


def find_cxx(environ: Mapping[str, str]) -> Compiler | None:
    """The C++ compiler (GCC or Clang): ``CXX``, split as a shell would, else the usual names."""
    search = environ.get("PATH")
    text = environ.get("CXX", "").strip()
    if not text:
        path = next((p for n in ("c++", "g++", "clang++") if (p := shutil.which(n, path=search))), None)
        return Compiler(path) if path else None
    try:
        # A path with a space that is not quoted is one word too, if there is such a program.
        words = [text] if shutil.which(text, path=search) else shlex.split(text)
    except ValueError as error:
        raise PlatformError(
            f"CXX={text!r}: {error}. Quote it as for a shell, or unset it. {USE_SKIP}"
        ) from error
    programs = []
    while words and not words[0].startswith("-"):
        program = shutil.which(words[0], path=search)
        if program is None:
            raise PlatformError(f"CXX={text!r}: no such program as {words[0]!r}. {USE_SKIP}")
        programs.append(program)
        words.pop(0)
    if not programs:
        raise PlatformError(f"CXX={text!r} names no program. {USE_SKIP}")
    return Compiler(programs[-1], tuple(programs[:-1]), tuple(without_unsafe(words)[0]))


def without_unsafe(flags: list[str]) -> tuple[list[str], list[str]]:
    """The flags that may stay, and those that would change results; nvcc's pairs are read as pairs."""
    safe: list[str] = []
    unsafe: list[str] = []
    words = iter(flags)
    for word in words:
        inner = [word]
        if word in ("-Xcompiler", "--compiler-options"):
            inner = [word, next(words, "")]
        named = inner[-1].removeprefix("-Xcompiler=").removeprefix("--compiler-options=").split(",")
        bad = any(_CHANGES_RESULTS.fullmatch(flag) for flag in named)
        (unsafe if bad else safe).extend(inner)
    return safe, unsafe


def build_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The environment to build in, the flags that it was asked for, and those that are left out.

    A flag that would change results is left out with a warning: such flags are often set for a whole
    machine, and no one who installs this package means them.
    """
    asked = {name: environ[name] for name in (*FLAG_VARIABLES, "CXX") if environ.get(name)}
    result, ignored = dict(environ), []
    for name, text in asked.items():
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise PlatformError(f"{name}={text!r}: {error}. Quote it as for a shell, or unset it.") from error
        safe, unsafe = without_unsafe(words)
        if unsafe and name != "CXX":
            result[name] = shlex.join(safe)
        ignored += [f"{name}: {shlex.join(unsafe)}"] if unsafe else []
    if ignored:
        logging.warning("left out, as they change results: %s", "; ".join(ignored))
    return result, asked, ignored


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
