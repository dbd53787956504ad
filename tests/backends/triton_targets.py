"""Compile the Triton kernels for GPUs that are not there, and count what came out, as JSON on stdout.

The launchers run as they do on a GPU, on tensors whose memory is never touched; each launch compiles
its kernel for the target instead of running it. So every kernel is compiled with the arguments, the
alignments and the options of a real call. Run in a process of its own (``python triton_targets.py``),
where TRITON_INTERPRET is not set: a kernel is either interpreted or compiled, decided when its module
is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vq_kernels.backends import QuantizeOptions
from vq_kernels.backends.triton import backward, common, ema, gather, nearest, quantize, statistics
from vq_kernels.backends.triton.plan import make_config, make_plan, padded_depth

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MULTIPROCESSORS = 132


class Driver:
    """Stands for the driver of a GPU that is not there; a device number for each target."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def compiled_for(target: GPUTarget, architecture: int) -> Iterator[dict[str, Any]]:
    """Launches inside compile for a target, with the tile sizes of an architecture: kernel name -> kernel."""
    compiled: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled[self.fn.__name__] = run(self, *args, grid=grid, warmup=True, **options)

    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(common, "architecture", return_value=architecture),
        mock.patch.object(common, "multiprocessors", return_value=MULTIPROCESSORS),
    ):
        driver.set_active(Driver(target))
        yield compiled


def inspect(compiled: Any, pairs: float = 0.0, fused: int = 1) -> dict[str, Any]:
    """Registers, spills, shared memory, and the instructions of the loop that holds the matrix product."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])

        def tool(option: str) -> str:
            command = [str(TOOLS / "cuobjdump"), option, str(cubin)]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage, sass = tool("-res-usage"), tool("-sass")
    lines = re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)([^;]*);", sass)
    at = {int(address, 16): i for i, (address, _, _) in enumerate(lines)}
    loop: list[str] = []
    loads: list[str] = []
    for i, (address, name, operands) in enumerate(lines):
        jump = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        if jump and int(jump[1], 16) < int(address, 16):
            body = [n.split(".")[0] for _, n, _ in lines[at[int(jump[1], 16)] : i + 1]]
            if any("MMA" in n for n in body) and len(body) > len(loop):
                loop = body
                loads = [n for _, n, _ in lines[at[int(jump[1], 16)] : i + 1] if n.startswith("LDG")]
    count = Counter(loop)
    total = Counter(n.split(".")[0] for _, n, _ in lines)
    result = {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        "spills": total["LDL"] + total["STL"],
        "shared": compiled.metadata.shared,
        "mma": sorted(n for n in total if "MMA" in n),
        "fused_float64": total["DFMA"],
        "approximate": len(re.findall(r"(?:sqrt|div)\.(?:approx|full)", compiled.asm["ptx"])),
        "atomics": {n: total[n] for n in ("RED", "REDG", "ATOMG") if total[n]},
        "loop": count,
    }
    if pairs:
        # A loop may hold more than one tile; every score takes ``fused`` FFMA.
        tiles = max(1, round((count["FFMA"] + 2 * count["FFMA2"]) / (pairs * fused)))
        result["per_pair"] = len(loop) / pairs / tiles
        # What a thread loads from global memory for a tile of codes, into shared memory and into registers.
        result["copied"], result["loaded"] = (
            sum(_width(n) for n in loads if n.startswith("LDGSTS") == shared) / tiles
            for shared in (True, False)
        )
    return result


def _width(load: str) -> int:
    """Bytes of one load of one thread."""
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1}
    return next((widths[part] for part in load.split(".") if part in widths), 4)


ROWS = 1 << 18


def channel_last(rows: int, dim: int, dtype: str) -> Tensor:
    return torch.empty(1, rows, dim, dtype=DTYPES[dtype])


def cuda(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)


def search_case(arch: int, x: str, codebook: str, precision: str, dim: int) -> dict[str, Any]:
    plan = make_plan(DTYPES[x], DTYPES[codebook], "l2", precision)
    config = make_config(arch, plan, dim)
    with compiled_for(cuda(arch), arch) as compiled:
        codes = torch.empty(8192, dim, dtype=DTYPES[codebook])
        indices = torch.empty(1, ROWS, dtype=torch.int64)
        nearest.search(channel_last(ROWS, dim, x), codes, None, "l2", precision, indices=indices)
    # The bias is one, and without packing the search for the minimum's column another.
    pairs = config.rows * config.codes / (32 * config.warps)
    result = inspect(compiled["search_kernel"], pairs, 1 if plan.pack else 2)
    tile = 2 * plan.code_parts * config.codes * padded_depth(config, dim)
    return result | {"limit": config.registers or 255, "warps": config.warps, "tile_bytes": tile}


def size_update(ptx: str) -> str:
    """Loads (l), barriers (b) and stores (s) of the loop that updates the sizes, up to the first store."""
    names = re.findall(r"\b(ld\.global|bar\.sync|st\.global)", ptx)
    before = names[: names.index("st.global") + 1]
    return "".join({"ld": "l", "ba": "b", "st": "s"}[name[:2]] for name in before)


def launch_quantize(codes: int, dim: int) -> None:
    x, codebook = channel_last(ROWS, dim, "f32"), torch.empty(codes, dim)
    out, copy = torch.empty_like(x), torch.empty_like(codebook)
    options = QuantizeOptions("l2", "exact", -1, statistics=True, keep_codes=True, backend=None)
    quantize.vector_quantize(x, codebook, None, options, out, copy)


def launch_statistics() -> None:
    indices = torch.empty(1, ROWS, dtype=torch.int64)
    statistics.code_statistics(channel_last(ROWS, 64, "f32"), indices, 512, True)


def launch_ema() -> None:
    codebook, sums, average = (torch.empty(512, 64) for _ in range(3))
    size, counts = torch.empty(512), torch.empty(512, dtype=torch.int64)
    ema.ema_update_(codebook, size, average, counts, sums, 0.99, 1e-5, True)


def launch_gather() -> None:
    indices = torch.empty(1, ROWS, dtype=torch.int64)
    gather.gather_codes(torch.empty(512, 64), indices, channel_last(ROWS, 64, "f32"))


def launch_backward() -> None:
    x, grad, out = (channel_last(ROWS, 64, "f32") for _ in range(3))
    indices, valid_rows = torch.empty(1, ROWS, dtype=torch.int64), torch.empty((), dtype=torch.int64)
    codebook, loss = torch.empty(512, 64), torch.empty(())
    backward.vector_quantize_backward(
        grad, loss, x, codebook, indices, valid_rows, 0.03, "rotation_trick", out
    )


# case -> (what launches it, the kernel)
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "prepare": (lambda: launch_quantize(512, 64), "prepare_kernel"),
    "prepare-wide": (lambda: launch_quantize(16_384, 256), "prepare_kernel"),
    "resolve": (
        lambda: nearest.nearest_code(channel_last(ROWS, 64, "f32"), torch.empty(8192, 64), "l2", "exact"),
        "resolve_kernel",
    ),
    "write": (lambda: launch_quantize(512, 64), "write_kernel"),
    "finish": (lambda: launch_quantize(512, 64), "finish_kernel"),
    "range": (launch_statistics, "range_kernel"),
    "accumulate": (launch_statistics, "accumulate_kernel"),
    "ema": (launch_ema, "ema_kernel"),
    "gather": (launch_gather, "gather_kernel"),
    "backward": (launch_backward, "backward_kernel"),
}


def other_case(arch: int, name: str) -> dict[str, Any]:
    launch, kernel = OTHERS[name]
    with compiled_for(cuda(arch), arch) as compiled:
        launch()
    result = inspect(compiled[kernel])
    return result | ({"size_update": size_update(compiled[kernel].asm["ptx"])} if name == "ema" else {})


def amd_case() -> dict[str, Any]:
    with compiled_for(GPUTarget("hip", "gfx942", 64), 80) as compiled:
        nearest.search(channel_last(ROWS, 64, "f32"), torch.empty(8192, 64), None, "l2", "exact")
    amdgcn = compiled["search_kernel"].asm["amdgcn"]
    return {"mma": sorted(set(re.findall(r"v_(mfma_\w+)", amdgcn)))}


SEARCHES = [
    (90, "bf16", "bf16", "fast", 64), (90, "bf16", "bf16", "fast", 128), (90, "bf16", "bf16", "fast", 256),
    (90, "f32", "f32", "fast", 64), (90, "f32", "f32", "high", 64), (90, "f32", "f32", "exact", 8),
    (90, "f32", "f32", "exact", 64), (90, "f32", "f32", "exact", 128), (90, "f32", "f32", "exact", 256),
    (90, "bf16", "f32", "exact", 64), (90, "f16", "f16", "exact", 64), (90, "f32", "f32", "exact", 512),
    (80, "bf16", "bf16", "fast", 64), (80, "f32", "f32", "exact", 64),
    (100, "bf16", "bf16", "fast", 64), (100, "f32", "f32", "exact", 64), (120, "f32", "f32", "exact", 64),
]  # fmt: skip


def main() -> None:
    results = {"-".join(map(str, case)): search_case(*case) for case in SEARCHES}
    results |= {f"90-{name}": other_case(90, name) for name in OTHERS}
    results["gfx942"] = amd_case()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET must not be set: kernels would not be compiled")
    main()
