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
from collections.abc import Iterator
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
from vq_kernels.backends.triton.plan import first_pass, make_config, make_plan, padded_depth

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MULTIPROCESSORS = 132

Results = dict[str, dict[str, Any]]


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
def compiled_for(target: GPUTarget, architecture: int, *only: str) -> Iterator[dict[str, Any]]:
    """Launches inside compile for a target, with the tile sizes of an architecture: kernel name -> kernel.

    With names of kernels, only those are compiled.
    """
    compiled: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        name = self.fn.__name__
        if only and name not in only:
            return
        if options.get("LISTED_FROM") and name == "search_kernel":
            name = "middle_kernel"
        compiled[name] = run(self, *args, grid=grid, warmup=True, **options)

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
        "tensor_memory": getattr(compiled.metadata, "tmem_size", 0),
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


def rows_in(layout: str, rows: int, dim: int, dtype: str) -> Tensor:
    """``[B, M, D]`` rows of a layout: contiguous, an odd slice of wider rows, or channel-first maps."""
    if layout == "rows":
        return torch.empty(1, rows, dim, dtype=DTYPES[dtype])
    if layout == "odd":
        return torch.empty(1, rows, dim + 3, dtype=DTYPES[dtype])[..., 1 : 1 + dim]
    pixels = {"maps": 1024, "odd_maps": 49}[layout]
    return torch.empty(rows // pixels, dim, pixels, dtype=DTYPES[dtype]).transpose(1, 2)


def cuda(arch: int) -> GPUTarget:
    return GPUTarget("cuda", arch, 32)


def search_case(
    arch: int, x: str, codebook: str, precision: str, dim: int, layout: str = "rows", *, second_pass: bool
) -> Results:
    """A search without statistics, of many rows."""
    rows, codes = rows_in(layout, ROWS, dim, x), torch.empty(8192, dim, dtype=DTYPES[codebook])
    plan = first_pass(make_plan(DTYPES[x], DTYPES[codebook], "l2", precision), dim)
    config = make_config(arch, plan, dim, common.loads_vectors(rows))
    kernels = ("search_kernel", "resolve_kernel") if second_pass else ("search_kernel",)
    with compiled_for(cuda(arch), arch, *kernels) as compiled:
        nearest.nearest_code(rows, codes, "l2", precision)
    # The bias is one, and without packing the search for the minimum's column another.
    pairs = config.rows * config.codes / (32 * config.warps)
    result = inspect(compiled["search_kernel"], pairs, 1 if plan.pack else 2)
    tile = 2 * plan.code_parts * config.codes * padded_depth(config, dim)
    result |= {"limit": config.registers or 255, "warps": config.warps, "tile_bytes": tile}
    name = "-".join([str(arch), x, codebook, precision, str(dim), *([layout] if layout != "rows" else [])])
    found = {name: result}
    for kernel in ("middle", "resolve"):
        if f"{kernel}_kernel" in compiled:
            found[f"{name}-{kernel}"] = inspect(compiled[f"{kernel}_kernel"])
    return found


def training_case(layout: str, dtype: str, dim: int, masked: bool, rows: int, codes: int) -> Results:
    """All kernels of a training step, as the layer launches them: mask, range of x, divided codes."""
    x, codebook = rows_in(layout, rows, dim, dtype), torch.empty(codes, dim)
    mask = torch.empty(x.shape[:2], dtype=torch.bool) if masked else None
    out, copy, loss = torch.empty_like(x), torch.empty_like(codebook), torch.empty(())
    size, average = torch.empty(codes), torch.empty_like(codebook)
    with compiled_for(cuda(90), 90) as compiled:
        options = QuantizeOptions("l2", "exact", -1, statistics=True, keep_codes=True, backend=None)
        result = quantize.vector_quantize(x, codebook, mask, options, out, copy)
        for gradient in ("straight_through", "rotation_trick"):
            backward.vector_quantize_backward(
                out, loss, x, copy, result.indices, result.valid_rows, 0.03, gradient, torch.empty_like(x)
            )
        ema.ema_update_(codebook, size, average, result.counts, result.sums, 0.99, 1e-5, True)
    name = f"train-{layout}-{dtype}-{dim}-{'masked' if masked else 'all'}-{rows}"
    found = {f"{name}-{kernel.removesuffix('_kernel')}": inspect(c) for kernel, c in compiled.items()}
    found[f"{name}-ema"]["size_update"] = size_update(compiled["ema_kernel"].asm["ptx"])
    return found


def size_update(ptx: str) -> str:
    """Loads (l), barriers (b) and stores (s) of the loop that updates the sizes, up to the first store."""
    names = re.findall(r"\b(ld\.global|bar\.sync|st\.global)", ptx)
    before = names[: names.index("st.global") + 1]
    return "".join({"ld": "l", "ba": "b", "st": "s"}[name[:2]] for name in before)


def few_case(arch: int) -> Results:
    """The kernel of few rows as a whole search, where numbers are loaded four at a time or one by one."""
    results: Results = {}
    for dim in (100, 128, 50):
        with compiled_for(cuda(arch), arch, "few_kernel") as compiled:
            nearest.nearest_code(torch.empty(1, 8, dim), torch.empty(1000, dim), "l2", "exact")
        results[f"few-{dim}"] = inspect(compiled["few_kernel"])
        vectors = re.findall(r"ld\.global\.v4", compiled["few_kernel"].asm["ptx"])
        results[f"few-{dim}"]["vectors"] = len(vectors)
    return results


def statistics_case() -> Results:
    x, indices = rows_in("rows", ROWS, 64, "f32"), torch.empty(1, ROWS, dtype=torch.int64)
    with compiled_for(cuda(90), 90) as compiled:
        statistics.code_statistics(x, indices, 512, True)
        gather.gather_codes(torch.empty(512, 64), indices, x)
    return {f"other-{name.removesuffix('_kernel')}": inspect(kernel) for name, kernel in compiled.items()}


def differences_case() -> Results:
    """The statistics of a learnable codebook, small and large."""
    results: Results = {}
    options = QuantizeOptions("l2", "exact", -1, True, False, None, codebook_weight=1.0, sum_differences=True)
    for codes in (512, 8192):
        x = rows_in("rows", ROWS, 64, "f32")
        with compiled_for(cuda(90), 90, "write_kernel", "float_sums_kernel") as compiled:
            quantize.vector_quantize(x, torch.empty(codes, 64), None, options, torch.empty_like(x), None)
        for name, kernel in compiled.items():
            results[f"differences-{codes}-{name.removesuffix('_kernel')}"] = inspect(kernel)
    return results


def amd_case() -> Results:
    indices = torch.empty(1, ROWS, dtype=torch.int64)
    with compiled_for(GPUTarget("hip", "gfx942", 64), 80, "search_kernel") as compiled:
        nearest.search(
            rows_in("rows", ROWS, 64, "f32"), torch.empty(8192, 64), None, "l2", "exact", indices=indices
        )
    amdgcn = compiled["search_kernel"].asm["amdgcn"]
    return {"gfx942": {"mma": sorted(set(re.findall(r"v_(mfma_\w+)", amdgcn)))}}


# Sizes are thinned out so that the first list takes about a minute: every D in one layout, the other layouts,
# pairs of dtypes and architectures at one or two D. The first list is for every version of Triton, and of the
# second pass, which takes longest to compile, it has one D of each path.
SECOND_PASS = (8, 64, 512)
SEARCHES: list[tuple[Any, ...]] = [
    *((90, "f32", "f32", "exact", dim) for dim in (8, 64, 100, 128, 200, 256, 512)),
    (90, "f32", "f32", "exact", 64, "odd_maps"), (90, "f32", "f32", "exact", 128, "odd"),
    (90, "bf16", "bf16", "fast", 64), (90, "f32", "f32", "high", 64),
]  # fmt: skip
MORE_SEARCHES: list[tuple[Any, ...]] = [
    (90, "f32", "f32", "exact", 64, "maps"), (90, "f32", "f32", "exact", 200, "odd"),
    (90, "bf16", "f32", "exact", 100, "odd"), (90, "bf16", "f32", "exact", 64),
    (90, "f16", "f16", "exact", 64), (90, "bf16", "bf16", "fast", 128), (90, "bf16", "bf16", "fast", 256),
    (90, "f32", "f32", "fast", 64),
    (80, "bf16", "bf16", "fast", 64), (80, "f32", "f32", "exact", 64), (100, "bf16", "bf16", "fast", 64),
    (100, "f32", "f32", "exact", 64), (100, "f32", "f32", "exact", 128, "maps"),
    (100, "f32", "f32", "exact", 128, "odd"), (100, "f32", "f32", "exact", 256),
    (120, "f32", "f32", "exact", 64),
]  # fmt: skip
TRAINING: list[tuple[str, str, int, bool, int, int]] = [
    ("rows", "f32", 64, False, ROWS, 512),
    ("rows", "f32", 64, True, 100, 8192),
]
MORE_TRAINING: list[tuple[str, str, int, bool, int, int]] = [
    ("rows", "bf16", 128, True, ROWS, 512),
    ("odd_maps", "f32", 8, True, ROWS, 512),
]


def main() -> None:
    """With ``--short`` the least that is told of a version, else all."""
    short = "--short" in sys.argv
    results: Results = {}
    for case in SEARCHES if short else [*SEARCHES, *MORE_SEARCHES]:
        is_layout = len(case) > 5
        results |= search_case(*case, second_pass=not short or is_layout or case[4] in SECOND_PASS)
    for training in TRAINING if short else [*TRAINING, *MORE_TRAINING]:
        results |= training_case(*training)
    results |= few_case(90)
    results |= statistics_case()
    results |= differences_case()
    if not short:
        results |= amd_case()
    json.dump({"version": triton.__version__, "results": results}, sys.stdout)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET must not be set: kernels would not be compiled")
    main()
