"""``python -m vq_kernels.info [--json]``: which backends work on this machine, and why the others do not."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import __version__, available_backends
from .build_info import read_build_info

_INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_bf16"),
    *("asimd", "sve"),
)


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _query(*command: str) -> str | None:
    """What a command prints, or None if it is not there or fails."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _checkout_commit() -> str | None:
    """The commit of the checkout that this package is run from, None for an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    return _query("git", "-C", str(root), "rev-parse", "HEAD") if (root / ".git").exists() else None


def _cpu(native_works: bool) -> dict[str, Any]:
    """The processor: instruction sets ``found`` by the system, and those of the native ``kernels``."""
    cpuinfo = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    kernels, wrong = None, None
    if native_works:
        try:
            kernels = importlib.import_module("vq_kernels._C").cpu_features()
        except ValueError as error:  # a variable asks for what is not here
            wrong = str(error)
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "found": [name for name in _INSTRUCTION_SETS if name in flags],
        "kernels": kernels,
        "kernels_error": wrong,
    }


def _gpu() -> dict[str, Any]:
    """CUDA as torch sees it, the driver's version and the GPUs."""
    driver = _query("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "torch_runtime": torch.version.cuda,
        "driver": driver.splitlines()[0] if driver else None,
        "gpus": [
            {
                "name": p.name,
                "capability": f"{p.major}.{p.minor}",
                "memory_gib": round(p.total_memory / 2**30, 1),
                "multiprocessors": p.multi_processor_count,
            }
            for p in properties
        ],
    }


def collect() -> dict[str, Any]:
    """Everything that the report shows, as plain data for JSON."""
    backends = available_backends()
    return {
        "version": __version__,
        "commit": _checkout_commit(),
        "backends": backends,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _package_version(name) for name in ("torch", "triton", "numpy")},
        "cpu": _cpu(native_works=backends.get("native", "unknown") is None),
        "cuda": _gpu(),
        "build": read_build_info(),
    }


def _build_lines(build: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if build is None:
        yield "build", "none: this checkout was never built"
        return
    native, cuda = build["native"], build["cuda"]
    yield "built from", f"{build['version']}, commit {build['commit'] or 'unknown'}, Python {build['python']}"
    if native["built"]:
        yield "compiler", f"{native['compiler']} ({native['path']})"
        yield "C++ flags", native["flags"]
        yield "compiled for", ", ".join(["portable", *native["instruction_sets"]])
        yield "OpenMP", native["openmp"] or "not found: one thread"
    else:
        yield "native module", f"not built: {native['reason']}"
    if cuda["built"]:
        yield "nvcc", f"{cuda['nvcc']} ({cuda['path']})"
        yield "nvcc flags", cuda["flags"].split(" -gencode")[0]
        yield "CUDA targets", ", ".join(cuda["targets"])
    else:
        yield "CUDA kernels", f"not built: {cuda['reason']}"


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The report as (label, text) rows; a row without text is a heading."""
    yield f"vq_kernels {report['version']}" + (f" ({report['commit']})" if report["commit"] else ""), ""
    yield "backends", ""
    for name, reason in report["backends"].items():
        yield f"  {name}", "works" if reason is None else f"no: {reason}"
    yield "machine", ""
    cpu, cuda = report["cpu"], report["cuda"]
    yield "  CPU", f"{cpu['model']}, {cpu['cores']} cores, torch uses {cpu['torch_threads']}"
    yield "  instruction sets", ", ".join(cpu["found"]) or "unknown"
    if cpu["kernels_error"] is not None:
        yield "  kernels use", f"none: {cpu['kernels_error']}"
    if (kernels := cpu["kernels"]) is not None:
        yield "  kernels use", f"{kernels['used']} (compiled: {', '.join(kernels['compiled'])})"
        yield "  first passes", ", ".join(kernels["first_passes"])
    yield "  CUDA", f"torch runtime {cuda['torch_runtime'] or 'none'}, driver {cuda['driver'] or 'none'}"
    for gpu in cuda["gpus"]:
        yield "  GPU", f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB"
    yield "versions", ""
    yield "  Python", f"{report['python']} on {report['platform']}"
    for name, version in report["packages"].items():
        yield f"  {name}", version or "not installed"
    yield "build", ""
    for label, text in _build_lines(report["build"]):
        yield f"  {label}", text


def main(arguments: list[str] | None = None) -> int:
    """Print the report; ``--json`` prints it as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m vq_kernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    report = collect()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for label, text in _lines(report):
            print(f"{label:<20} {text}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
