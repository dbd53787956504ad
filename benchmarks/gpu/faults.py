"""Fatal faults of a GPU, and compute-sanitizer, which finds where they come from.

After an illegal address every later call of the process fails too, so that whoever meets one must end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from ..machine import ROOT

FATAL = 3  # exit status of a program of this folder that met a fatal fault
_FATAL = re.compile(
    "illegal memory access|misaligned address|illegal instruction|illegal address|device-side assert"
    "|unspecified launch failure|invalid program counter|launch timed out|hardware stack error"
    "|uncorrectable ECC",
    re.IGNORECASE,
)


class NotHere(RuntimeError):
    """This machine cannot be asked; the text says why."""


def is_fatal(error: BaseException | str) -> bool:
    """Whether an error of the CUDA runtime leaves the process unusable."""
    return _FATAL.search(str(error)) is not None


def run_limited(
    command: Sequence[str], seconds: float, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """Exit status (None: it did not end in time) and output of a command, stdout and stderr together.

    Its whole process group is killed at the limit: a part's own children must not outlive it.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        kill_group(process)
        output, _ = process.communicate()
        return None, output
    except BaseException:
        kill_group(process)
        raise


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a process that leads a group, and the group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def sanitizer() -> str | None:
    """The path of compute-sanitizer, None where it is not installed."""
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


def sanitize(tool: str, module: Sequence[str], seconds: float, *, only_ours: bool) -> tuple[int, str]:
    """Run ``python -m MODULE...`` under a tool of compute-sanitizer: its exit status and whole output.

    Args:
        tool: ``"memcheck"`` or ``"racecheck"``.
        only_ours: look at the CUDA C++ kernels of this library alone, which is many times faster.

    Raises:
        NotHere: it is not installed, does not serve this device, or did not end in time.
    """
    program = sanitizer()
    if program is None:
        raise NotHere("compute-sanitizer is not installed")
    only = ["--kernel-regex", "kns=vq_cuda"] if only_ours else []
    command = [program, "--tool", tool, "--error-exitcode", "9", *only, sys.executable, "-m", *module]
    status, output = run_limited(command, seconds)
    if status is None:
        raise NotHere(f"did not end within {seconds:.0f} seconds")
    if re.search(r"[Dd]evice not supported|[Uu]nable to|Target application terminated before", output):
        raise NotHere(next(line for line in output.splitlines() if line.startswith("=========")).strip("= "))
    return status, output
