"""Peak memory of a call beyond its inputs and outputs.

``python -m benchmarks.memory`` shows, for K from 512 to 65536, that a search takes memory for N rows
and for the codebook but none for N x K.

On the CPU the peak is the process's own (``VmHWM``, reset before the call), so it counts whatever any
library allocates by any means; on CUDA it is the allocator's. Each list of probes runs in a process
of its own, from which freed memory is given back to the system before every probe.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .machine import ROOT
from .work import Case, make_inputs

MIB = 2.0**20


class CannotMeasure(RuntimeError):
    """This system does not tell a process its peak memory."""


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise CannotMeasure(f"/proc/self/status has no {field}")


def _output_bytes(result: object) -> int:
    if isinstance(result, Tensor):
        return result.untyped_storage().nbytes()
    if isinstance(result, (tuple, list)):
        return sum(_output_bytes(r) for r in result)
    return 0


def peak_beyond_outputs(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes by which memory rose at most during ``call``, less the tensors that it returned.

    Inputs are there before and so not counted. Exact on CUDA; to about 0.2 MiB on the CPU.

    Raises:
        CannotMeasure: the kernel does not report or reset the peak (not Linux, or restricted).
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return max(0, torch.cuda.max_memory_allocated() - before - _output_bytes(result))
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else the call could be served from what earlier calls freed
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM = VmRSS
    except (AttributeError, OSError) as error:
        raise CannotMeasure(f"peak memory cannot be reset here: {error}") from error
    before = _status_bytes("VmRSS")
    result = call()
    return max(0, _status_bytes("VmHWM") - before - _output_bytes(result))


@dataclass(frozen=True)
class Probe:
    """A call to measure: ``work`` is "search", "forward" or "step", ``contender`` as in the table."""

    work: str
    contender: str
    n: int
    d: int
    k: int
    device: str = "cpu"
    backend: str | None = None

    def make_call(self) -> Callable[[], object]:
        """Inputs made, peer prepared; the call is what is measured."""
        case = Case(self.n, self.d, self.k)
        if self.work == "search":
            return self._search(*make_inputs(case, self.device))
        from . import layers

        if self.contender.startswith("vq_kernels"):
            layer = layers.our_layer(case, self.device, self.backend)
        else:
            layer = layers.their_layer(case, self.device)
        if "compiled" in self.contender:
            layer.compile(dynamic=False)
        x = make_inputs(case, self.device)[0][None]
        if self.work == "forward":
            return layers.forward_only(layer, x)
        return layers.training_step(layer, x.requires_grad_())

    def _search(self, x: Tensor, codebook: Tensor) -> Callable[[], object]:
        from .peers import our_search, search_peers

        if self.contender.startswith("vq_kernels"):
            precision = self.contender.rpartition(" ")[2]
            return our_search(x, codebook, precision=precision, backend=self.backend)
        (peer,) = [p for p in search_peers(self.device) if p.name == self.contender]
        return peer.prepare(x, codebook)


def _run_probes(probes: Iterable[Probe]) -> None:
    """In the child: one line of JSON per probe, bytes or the reason."""
    for probe in probes:
        compiled = "compiled" in probe.contender
        warm_up = probe if compiled else replace(probe, n=256, k=64)
        call = warm_up.make_call()
        call()  # libraries loaded, thread pools started; the compiler's own memory is not the call's
        if not compiled:
            call = probe.make_call()
        try:
            print(json.dumps({"bytes": peak_beyond_outputs(call, probe.device)}), flush=True)
        except (CannotMeasure, torch.OutOfMemoryError) as error:
            print(json.dumps({"reason": str(error).splitlines()[0]}), flush=True)


def measure_probes(probes: list[Probe]) -> list[int | str]:
    """Peak bytes of each probe, or the reason why there is none, measured in one process of their own.

    Raises:
        RuntimeError: that process failed; the message carries its last lines.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--probes", json.dumps([asdict(p) for p in probes])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(lines) != len(probes):
        raise RuntimeError("memory probes failed:\n" + "\n".join(done.stderr.splitlines()[-8:]))
    return [line.get("bytes", line.get("reason")) for line in lines]


SWEEP_N, SWEEP_D = 8192, 64
SWEEP_K = (512, 2048, 8192, 65536)


def sweep(device: str = "cpu", backend: str | None = None) -> list[dict[str, Any]]:
    """Peak of our search at fixed N over K, beside N x K and N + K D floats, in bytes."""
    probes = [Probe("search", "vq_kernels exact", SWEEP_N, SWEEP_D, k, device, backend) for k in SWEEP_K]
    return [
        {
            "n": p.n,
            "d": p.d,
            "k": p.k,
            "peak_bytes": peak,
            "n_k_bytes": 4 * p.n * p.k,
            "linear_bytes": 4 * (p.n + p.k * p.d),
        }
        for p, peak in zip(probes, measure_probes(probes), strict=True)
    ]


def sweep_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The sweep as a small table, MiB."""
    lines = [f"peak memory of the exact search beyond inputs and outputs, N={SWEEP_N} D={SWEEP_D}, MiB"]
    lines.append(f"{'K':>8}{'measured':>12}{'N + K D':>12}{'N x K':>12}")
    for row in rows:
        peak = row["peak_bytes"]
        shown = f"{peak / MIB:.1f}" if isinstance(peak, int) else peak
        lines.append(
            f"{row['k']:>8}{shown:>12}{row['linear_bytes'] / MIB:>12.1f}{row['n_k_bytes'] / MIB:>12.1f}"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the sweep over K, or with ``--probes JSON`` measure those in this process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--probes"]:
        _run_probes(Probe(**p) for p in json.loads(arguments[1]))
        return 0
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
        print("\n".join(sweep_lines(sweep(device))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
