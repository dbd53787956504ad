"""``python -m benchmarks.gpu.sanitized BACKEND``: every operation once on small inputs.

The program that compute-sanitizer watches, and how it is asked to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch

import vq_kernels as vq

from ..machine import ROOT
from .faults import NotHere, sanitize, sanitizer
from .target import Target, open_target

TOOLS = ("memcheck", "racecheck")
DIMS = (24, 100, 3)  # with and without rows that are multiples of 16 bytes, and the kernel for few dimensions
SECONDS = 100.0


def call_everything(backend: str, target: Target) -> None:
    """Every operation once for each kind of kernel, small."""
    n, k, dims, dtypes = target.choose(
        (200, 70, DIMS, (torch.float32, torch.bfloat16)), (9, 13, DIMS[-1:], (torch.float32,))
    )
    device = target.device
    for d in dims:
        for dtype in dtypes:
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
            vq.ema_update_(
                codebook, size, average, got.counts, got.sums, decay=0.9, eps=1e-5, backend=backend
            )
            vq.code_statistics(x.detach(), got.indices[0], k, backend=backend)
            vq.gather_codes(codebook, got.indices, channel_dim=1, backend=backend)
    target.synchronize()


def passes_sanitizer(tool: str, backend: str, target: Target, seconds: float = SECONDS) -> str:
    """No error reported by a tool of compute-sanitizer; of CUDA C++ it looks at our kernels alone.

    A rehearsal without the tool runs the program as it is.
    """
    module = ("benchmarks.gpu.sanitized", backend, *target.flags)
    if target.is_rehearsal and sanitizer() is None:
        subprocess.run([sys.executable, "-m", *module], cwd=ROOT, check=True, timeout=seconds)
        raise NotHere("compute-sanitizer is not installed; its program runs")
    status, output = sanitize(tool, module, seconds, only_ours=backend == "cuda")
    summary = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
    assert status == 0, "\n".join([*summary, output[-2000:]])
    return summary[-1] if summary else "no summary"


def main(arguments: list[str] | None = None) -> int:
    """0 when every call returned, 2 without a CUDA GPU; what a call raises passes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sanitized", description=__doc__)
    parser.add_argument("backend")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, with tiny sizes")
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "sanitized")) is None:
        return 2
    call_everything(target.backend(options.backend), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
