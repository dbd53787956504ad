"""Compile the Triton kernels for GPUs that are not there, and count what came out, as JSON on stdout.

Run in a process of its own (``python triton_targets.py``), where TRITON_INTERPRET is not set: a kernel
is either interpreted or compiled, decided when its module is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vq_kernels.backends.triton import (
    backward,
    certificate,
    ema,
    gather,
    nearest,
    prepare,
    quantize,
    search,
    statistics,
)
from vq_kernels.backends.triton.plan import Plan, make_bound, make_config, make_plan, padded_depth

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
POINTERS = {"f32": "*fp32", "f16": "*fp16", "bf16": "*bf16"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TYPES = {
    "bias": "*fp32", "center": "*fp32", "extremes": "*fp32", "square_high": "*fp64", "square_low": "*fp64",
    "mask": "*i1", "candidates": "*i32", "value_in": "*fp32", "value_out": "*fp32", "second_in": "*fp32",
    "second_out": "*fp32", "bound_in": "*fp32", "bound_out": "*fp32", "ambiguous": "*i32",
    "threshold": "*fp32",
    "counters": "*i64", "scratch": "*i64", "counts": "*i64", "indices": "*i64", "error": "*fp32",
    "mse": "*fp32", "valid_rows": "*i64", "sums": "*fp32", "cluster_size": "*fp32", "embed_avg": "*fp32",
    "totals": "*fp32", "grad_loss": "*fp32", "weight": "fp32", "eps": "fp32", "scale": "fp32",
}  # fmt: skip
ALIGNED = {
    "N",
    "M",
    "padded_k",
    "stride_b",
    "stride_m",
    "codes_per_split",
    "out_b",
    "out_m",
    "grad_b",
    "grad_m",
}
UNIT = {"stride_d", "out_d", "grad_d"}


def search_constants(plan: Plan, arch: int, dim: int) -> dict[str, Any]:
    config = make_config(arch, plan, dim)
    bound = make_bound(plan, config, dim)
    return {
        "D": dim, "PADDED_D": padded_depth(config, dim), "CHUNK": config.depth, "RESIDENT": config.resident,
        "BN": config.rows, "BK": config.codes, "STAGES": config.stages, "SPLIT": plan.split,
        "PARTS": plan.parts, "CODE_PARTS": plan.code_parts, "CENTERED": plan.centered_rows,
        "L2": plan.metric == "l2", "EXACT": plan.exact, "PACK": plan.pack, "DIVIDED": False,
        "HAS_MASK": False, "RANGE": False, "INTERPRETED": False, "MAIN": bound.main, "MINOR": bound.minor,
        "CONTRACT": bound.contract,
        "DELTA": bound.delta, "SLACK": certificate.SLACK, "BOUND_SCALE": 1.0, "LINES": 256, "SPLITS": 1,
        "WIDE": False,
    }  # fmt: skip


def compile_kernel(
    kernel: Any, target: GPUTarget, types: dict[str, str], constants: dict[str, Any], **options: Any
) -> Any:
    signature, values, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[name] = "constexpr", constants[name]
        elif name in UNIT:
            signature[name], values[name] = "constexpr", 1
        else:
            signature[name] = types.get(name, TYPES.get(name, "i32"))
            if signature[name].startswith("*") or name in ALIGNED:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=target, options={k: v for k, v in options.items() if v is not None})


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


def search_case(arch: int, x: str, codebook: str, precision: str, dim: int) -> dict[str, Any]:
    plan = make_plan(DTYPES[x], DTYPES[codebook], "l2", precision)
    config = make_config(arch, plan, dim)
    parts = "*fp16" if plan.split else POINTERS[codebook]
    constants = search_constants(plan, arch, dim) | {"mask": None}
    types = {"x": POINTERS[x], "high": parts, "low": parts, "index_out": "*i64"}
    target = GPUTarget("cuda", arch, 32)
    compiled = compile_kernel(
        search.search_kernel, target, types, constants,
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.registers,
    )  # fmt: skip
    # The bias is one, and without packing the search for the minimum's column another.
    result = inspect(compiled, config.rows * config.codes / (32 * config.warps), 1 if plan.pack else 2)
    tile = 2 * plan.code_parts * config.codes * padded_depth(config, dim)
    return result | {"limit": config.registers or 255, "warps": config.warps, "tile_bytes": tile}


def size_update(ptx: str) -> str:
    """Loads (l), barriers (b) and stores (s) of the loop that updates the sizes, up to the first store."""
    names = re.findall(r"\b(ld\.global|bar\.sync|st\.global)", ptx)
    before = names[: names.index("st.global") + 1]
    return "".join({"ld": "l", "ba": "b", "st": "s"}[name[:2]] for name in before)


def other_case(arch: int, name: str) -> dict[str, Any]:
    dim, target = 64, GPUTarget("cuda", arch, 32)
    plan = make_plan(torch.float32, torch.float32, "l2", "exact")
    constants = search_constants(plan, arch, dim) | {"BK": nearest.SETTLE_CODES, "mask": None}
    rows = {"D": dim, "CHUNK": 64, "BN": 32}
    types = {
        "x": "*fp32",
        "codebook": "*fp32",
        "kept": "*fp32",
        "high": "*fp16",
        "low": "*fp16",
        "out": "*fp32",
        "grad": "*fp32",
    }
    exact = {"num_warps": 4, "enable_fp_fusion": False}
    if name.startswith("prepare"):
        wide = name == "prepare-wide"
        own = {
            "D": 256 if wide else dim,
            "PADDED_D": 256 if wide else dim,
            "CHUNK": 64,
            "CODES": prepare.MOST_CODES if wide else 16,
            "SAMPLE": prepare.SAMPLE,
            "CENTERED_ROWS": True,
            "SQUARES": True,
            "KEEP": True,
            "PARTS": 2,
        }
        return inspect(compile_kernel(prepare.prepare_kernel, target, types, constants | own, **exact))
    if name == "settle":
        types["index_in"] = types["index_out"] = "*i64"
        return inspect(compile_kernel(nearest.settle_kernel, target, types, constants, **exact))
    if name == "write":
        types |= {"index_in": "*i32", "index_out": "*i64"}
        own = {"ROW_CHUNK": 64, "BN": 32, "STATISTICS": True, "COPIES": 2}
        return inspect(compile_kernel(quantize.write_kernel, target, types, constants | own, **exact))
    if name == "finish":
        own = {
            "HAS_MASK": False,
            "STATISTICS": True,
            "COPIES": 2,
            "BLOCK": 1024,
            "ERROR_BLOCK": 1 << 15,
            "LINES": 32,
        }
        return inspect(compile_kernel(quantize.finish_kernel, target, {"partial": "*fp64"}, own, num_warps=4))
    if name == "range":
        types["partial"] = "*fp32"
        return inspect(compile_kernel(statistics.range_kernel, target, types, rows, num_warps=4))
    if name == "accumulate":
        types["partial"] = "*fp32"
        own = rows | {"LINES": 512, "COPIES": 2, "SKIP": True}
        return inspect(compile_kernel(statistics.accumulate_kernel, target, types, own, num_warps=4))
    if name == "ema":
        own = {"D": dim, "PADDED_D": 64, "CODES": 128, "SIZES": 1024, "ALONE": True, "NORMALIZE": True}
        compiled = compile_kernel(ema.ema_kernel, target, types, own, num_warps=8)
        return inspect(compiled) | {"size_update": size_update(compiled.asm["ptx"])}
    if name == "gather":
        return inspect(compile_kernel(gather.gather_kernel, target, types, rows, num_warps=4))
    own = rows | {"HAS_GRAD": True, "HAS_LOSS": True, "ROTATE": True}
    return inspect(compile_kernel(backward.backward_kernel, target, types, own, num_warps=4))


def amd_case() -> dict[str, Any]:
    plan = make_plan(torch.float32, torch.float32, "l2", "exact")
    constants = search_constants(plan, 80, 64) | {"mask": None}
    types = {"x": "*fp32", "high": "*fp16", "low": "*fp16", "index_out": "*i64"}
    compiled = compile_kernel(
        search.search_kernel, GPUTarget("hip", "gfx942", 64), types, constants, num_warps=4, num_stages=2
    )
    return {"mma": sorted(set(re.findall(r"v_(mfma_\w+)", compiled.asm["amdgcn"])))}


SEARCHES = [
    (90, "bf16", "bf16", "fast", 64), (90, "bf16", "bf16", "fast", 128), (90, "bf16", "bf16", "fast", 256),
    (90, "f32", "f32", "fast", 64), (90, "f32", "f32", "high", 64), (90, "f32", "f32", "exact", 8),
    (90, "f32", "f32", "exact", 64), (90, "f32", "f32", "exact", 128), (90, "f32", "f32", "exact", 256),
    (90, "bf16", "f32", "exact", 64), (90, "f16", "f16", "exact", 64), (90, "f32", "f32", "exact", 512),
    (80, "bf16", "bf16", "fast", 64), (80, "f32", "f32", "exact", 64),
    (100, "bf16", "bf16", "fast", 64), (100, "f32", "f32", "exact", 64), (120, "f32", "f32", "exact", 64),
]  # fmt: skip
OTHERS = [
    "prepare",
    "prepare-wide",
    "settle",
    "write",
    "finish",
    "range",
    "accumulate",
    "ema",
    "gather",
    "backward",
]


def main() -> None:
    results = {"-".join(map(str, case)): search_case(*case) for case in SEARCHES}
    results |= {f"90-{name}": other_case(90, name) for name in OTHERS}
    results["gfx942"] = amd_case()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET must not be set: kernels would not be compiled")
    main()
