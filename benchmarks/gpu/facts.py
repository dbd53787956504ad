"""What is this machine? GPU, driver, clocks, versions, and whether every package brought along imports."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .. import machine
from .faults import run_limited, sanitizer
from .packages import PACKAGES, read_packages
from .target import add_arguments, open_target

FILE = "facts.json"
GPU_FACTS = (
    *("name", "driver_version", "compute_cap", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem"),
    *("power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current"),
)
NEEDED = (
    "pybind11",
    "cmake",
    "ninja",
    "pytest",
    "xdist",
    "pytest_timeout",
    "hypothesis",
    "lightning",
    "sklearn",
)


def ask_driver() -> dict[str, str] | str:
    """The first GPU, as the driver's tool describes it, or why it does not."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader", "-i", "0"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return dict(zip(GPU_FACTS, (value.strip() for value in shown.split(",")), strict=False))


def import_problem(module: str) -> str | None:
    """None if a process of its own can import a module, else the last line of what it says."""
    status, output = run_limited([sys.executable, "-c", f"import {module}"], 20.0)
    if status == 0:
        return None
    return output.strip().splitlines()[-1] if output.strip() else f"exit status {status}"


def first_lines(command: list[str]) -> str | None:
    """Output of a tool's ``--version``, None where it is missing."""
    if shutil.which(command[0]) is None:
        return None
    return run_limited(command, 10.0)[1].strip()


def collect(device: str) -> dict[str, Any]:
    """Everything, as it goes into the file."""
    packages = read_packages(PACKAGES)
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(import_problem, [p.module for p in packages]))
    return {
        **machine.describe(device),
        "gpu": ask_driver(),
        "cores": os.cpu_count(),
        "nvcc": first_lines(["nvcc", "--version"]),
        "compute_sanitizer": sanitizer(),
        "packages": {p.requirement: problem for p, problem in zip(packages, problems, strict=True)},
        "missing": [name for name in NEEDED if importlib.util.find_spec(name) is None],
    }


def main(arguments: list[str] | None = None) -> int:
    """0, also where a package is missing, as parts that need it say so; 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.facts", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "facts")) is None:
        return 2
    if options.out is None:
        parser.error("--out is missing; accepted: a folder")
    facts = collect(target.device)
    machine.write_json(options.out / FILE, facts)
    for name, problem in facts["packages"].items():
        if problem is not None:
            print(f"{name}: {problem}")
    absent = sum(problem is not None for problem in facts["packages"].values())
    words = [f"{len(facts['packages']) - absent} of {len(facts['packages'])} packages import"]
    words += [f"missing: {', '.join(facts['missing'])}"] if facts["missing"] else []
    gpu = facts["gpu"]
    words += [f"{gpu['name']}, driver {gpu['driver_version']}" if isinstance(gpu, dict) else "no GPU"]
    print("; ".join(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
