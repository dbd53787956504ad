"""``python -m benchmarks.gpu.sanitized BACKEND D DTYPE``: every operation once on small inputs.

The program that compute-sanitizer watches, and how it is asked to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import vq_kernels as vq

from ..machine import ROOT
from .faults import NotHere, sanitize, sanitizer
from .target import BACKENDS, Target, open_target

TOOLS = ("memcheck", "racecheck")
# With and without rows that are multiples of 16 bytes; of CUDA C++ also the kernels for few dimensions.
UNITS = {
    "triton": ((24, "float32"), (100, "float32"), (24, "bfloat16"), (100, "bfloat16")),
    "cuda": ((3, "float32"), (24, "float32"), (100, "float32"), (24, "bfloat16"), (100, "bfloat16")),
}
TINY_UNITS = ((3, "float32"),)
SECONDS = 100.0


def call_everything(backend: str, d: int, dtype: torch.dtype, target: Target) -> None:
    """Every operation once, small, x channel-last and channel-first."""
    n, k = target.choose((200, 70), (9, 13))
    device = target.device
    x = torch.randn(n, d, device=device).to(dtype)
    codebook = torch.randn(k, d, device=device)
    codebook[k // 2 + 1 :] = codebook[: k - k // 2 - 1].clone()  # ties, so that rows are scored again
    x.requires_grad_()
    got = vq.vector_quantize(x, codebook, gradient="rotation_trick", backend=backend)
    (got.quantized.float().sum() + got.loss).backward()
    first = x.detach().T.contiguous()[None].requires_grad_()
    got = vq.vector_quantize(first, codebook, channel_dim=1, backend=backend)
    (got.quantized.float().sum() + got.loss).backward()
    average, size = torch.randn_like(codebook), torch.rand(k, device=device)
    vq.ema_update_(codebook, size, average, got.counts, got.sums, decay=0.9, eps=1e-5, backend=backend)
    vq.code_statistics(x.detach(), got.indices[0], k, backend=backend)
    vq.gather_codes(codebook, got.indices, channel_dim=1, backend=backend)
    target.synchronize()


def passes_sanitizer(tool: str, backend: str, target: Target, seconds: float = SECONDS) -> str:
    """No error reported by a tool of compute-sanitizer; of CUDA C++ it looks at our kernels alone.

    Each D and dtype is a process of its own and all run side by side: compiling is most of their time.
    A rehearsal without the tool runs the program as it is.
    """
    units = target.choose(UNITS[backend], TINY_UNITS)
    with ThreadPoolExecutor(len(units)) as pool:
        said = list(pool.map(lambda unit: _watch(tool, backend, unit, target, seconds), units))
    return f"{len(units)} programs: {said[0]}"


def _watch(tool: str, backend: str, unit: tuple[int, str], target: Target, seconds: float) -> str:
    """What the tool says of one program."""
    d, dtype = unit
    module = ("benchmarks.gpu.sanitized", backend, str(d), dtype, *target.flags)
    if target.is_rehearsal and sanitizer() is None:
        subprocess.run([sys.executable, "-m", *module], cwd=ROOT, check=True, timeout=seconds)
        raise NotHere("compute-sanitizer is not installed; its program runs")
    status, output = sanitize(tool, module, seconds, only_ours=backend == "cuda")
    summary = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
    assert status == 0, "\n".join([f"D={d}, {dtype}: {' '.join(summary)}", output[-2000:]])
    return summary[-1] if summary else "no summary"


def main(arguments: list[str] | None = None) -> int:
    """0 when every call returned, 2 without a CUDA GPU; what a call raises passes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitized", description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("d", type=int)
    parser.add_argument("dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, with tiny sizes")
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "sanitized")) is None:
        return 2
    call_everything(target.backend(options.backend), options.d, getattr(torch, options.dtype), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
