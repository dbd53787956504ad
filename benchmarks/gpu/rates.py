"""What this GPU can do at best: matrix products, copies, L2 reads, and lanes a clock of the plain units.

The clock is sampled meanwhile, as it falls under load: rates in lanes a clock do not depend on it, roofs in
seconds do. ``rates.cu`` measures the units; it is compiled here by nvcc.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import machine
from ..roofline import copy_rate, matmul_rate
from .clock import ClockSampler
from .faults import NotHere
from .target import Target, add_arguments, open_target

SOURCE = Path(__file__).with_name("rates.cu")
FILE = "roofs.json"


def compile_command(nvcc: str, output: Path, capability: tuple[int, int]) -> list[str]:
    """How ``rates.cu`` is compiled. For 9.0 the target is 90a, named in full: ``-arch=sm_90a`` also compiles
    for plain sm_90."""
    number = f"{capability[0]}{capability[1]}" + ("a" if capability >= (9, 0) else "")
    target = f"-gencode=arch=compute_{number},code=sm_{number}"
    return [nvcc, target, "-O3", "-std=c++17", "-o", str(output), str(SOURCE)]


def build(output: Path, capability: tuple[int, int]) -> Path:
    """Compile ``rates.cu``.

    Raises:
        NotHere: there is no nvcc, or it fails.
    """
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise NotHere("nvcc is not installed")
    done = subprocess.run(compile_command(nvcc, output, capability), capture_output=True, text=True)
    if done.returncode != 0:
        raise NotHere(f"nvcc failed: {done.stderr.strip() or done.stdout.strip()}")
    return output


def unit_rates(program: Path) -> list[dict[str, Any]]:
    """Run the program: one record a unit.

    Raises:
        RuntimeError: it failed; the message is its own.
    """
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"rates ended with {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class RoofFile:
    """``roofs.json``, written anew after every measurement."""

    def __init__(self, out: Path, description: dict[str, Any]) -> None:
        self.path = out / FILE
        self.content: dict[str, Any] = {**description, "roofs": {}, "units": None, "failures": {}}

    def measure(self, name: str, action: Callable[[], Any]) -> Any:
        """One measurement with the clock meanwhile; a failure is recorded, and the next one goes on."""
        sampler, value = ClockSampler(), None
        try:
            with sampler:
                value = action()
        except Exception as error:
            self.content["failures"][name] = f"{type(error).__name__}: {error}"
        if isinstance(value, float):
            self.content["roofs"][name] = {"per_second": value, "clock": sampler.report()}
            print(f"{name:<22}{value / 1e12:>9.2f} T/s  {sampler.report() or ''}", flush=True)
        machine.write_json(self.path, self.content)
        return value


def measure_roofs(file: RoofFile, target: Target) -> None:
    """Torch's products and a copy beyond the caches."""
    size, copied = target.choose((8192, 2**31), (128, 2**20))
    device = target.device
    file.measure("bfloat16 product", lambda: matmul_rate(torch.bfloat16, size, device))
    file.measure("copy", lambda: copy_rate(copied, device))
    before = torch.get_float32_matmul_precision()
    try:
        for name, precision in (("tf32 product", "high"), ("float32 product", "highest")):
            torch.set_float32_matmul_precision(precision)
            file.measure(name, lambda: matmul_rate(torch.float32, size, device))
    finally:
        torch.set_float32_matmul_precision(before)


def measure_units(file: RoofFile, target: Target) -> None:
    """The plain units; in a rehearsal they are compiled for sm_90a and not run."""
    with tempfile.TemporaryDirectory() as folder:
        capability = target.choose((0, 0), (9, 0))
        if not target.is_rehearsal:
            capability = torch.cuda.get_device_capability()
        program = build(Path(folder) / "rates", capability)
        if target.is_rehearsal:
            return
        units = file.measure("plain units", lambda: unit_rates(program))
    file.content["units"] = units
    machine.write_json(file.path, file.content)
    for unit in units or ():
        rate = unit.get("lanes_per_clock", unit.get("bytes_per_clock"))
        print(f"{unit['unit']:<22}{rate:>9.2f} a clock, {unit['clock_mhz']:.0f} MHz")


def main(arguments: list[str] | None = None) -> int:
    """0 when all was measured, 1 when something failed, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.rates", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "rates")) is None:
        return 2
    if options.out is None:
        parser.error("--out is missing; accepted: a folder")
    file = RoofFile(options.out, machine.describe(target.device))
    measure_roofs(file, target)
    try:
        measure_units(file, target)
    except NotHere as reason:
        if not target.is_rehearsal:
            file.content["failures"]["plain units"] = str(reason)
            machine.write_json(file.path, file.content)
        print(f"plain units not measured: {reason}")
    failures = file.content["failures"]
    for name, error in failures.items():
        print(f"FAILED {name}: {error}")
    print(f"{len(file.content['roofs'])} roofs, {len(file.content['units'] or ())} units")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
