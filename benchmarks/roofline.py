"""What this machine can do at best, measured in the same run as everything else.

``python -m benchmarks.roofline`` prints the roofs.
"""

from __future__ import annotations

import importlib
import subprocess
import time
from dataclasses import asdict, dataclass

import torch

from vq_kernels.backends import marshal, native

from .measure import Budget, measure_alone, timer_for
from .work import Case

# A multiprocessor's plain cores issue 128 instructions a clock, but only 64 of a minimum, a logic
# operation, a selection or a comparison (the vendor's table of throughputs, compute capability 8.x to 9.0).
# A running minimum that carries its column costs, for a (row, code) pair on sm_90, as counted in compiled
# kernels: see METHOD.md.
LANES, HALF_RATE_LANES = 128, 64
EPILOGUE_INSTRUCTIONS = 3.6
EPILOGUE_HALF_RATE = 2.0  # of these: the column into the low bits, and the minimum

# Rows that share a reading of the codebook from the L2 cache, and bytes of a number of its 16-bit parts.
ROWS_A_TILE, PART_BYTES = 128, 2
_BUDGET = Budget(seconds=0.6, sample_s=0.02, min_pairs=3, max_pairs=15)


@dataclass(frozen=True)
class Roofs:
    """Peak rates: operations/s of products and bytes/s of a copy; None where the unit is missing.

    On the CPU ``float32``, ``bfloat16``, ``int8`` and ``int16`` are multiply-adds in registers, those of a
    matrix unit where there is one, which no product of matrices can exceed; torch's float32
    product where there is no such loop.
    ``epilogue`` is (row, code) pairs per second that the plain cores can reduce to a minimum, at the clock
    that they keep under load, and ``l2`` bytes/s of a copy that stays in the L2 cache (GPU).
    """

    float32: float
    bfloat16: float | None
    memory: float
    tf32: float | None = None
    epilogue: float | None = None
    l2: float | None = None
    int8: float | None = None
    int16: float | None = None

    def as_json(self) -> dict[str, float | None]:
        return asdict(self)


def matmul_rate(dtype: torch.dtype, size: int, device: str = "cpu") -> float:
    """FLOP/s of a square matrix product of torch, in the best of its repetitions."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    spread = measure_alone(lambda: torch.mm(a, b, out=out), timer=timer_for(device), budget=_BUDGET)
    return 2.0 * size**3 / spread.low


def register_rate(unit: str, seconds: float = 0.3) -> float | None:
    """Operations/s of the native module's multiply-adds in registers, all threads; None without them.

    The best of many short runs: whatever else the machine does only takes from it.
    """
    if native.unavailable_reason() is not None:
        return None
    peak = importlib.import_module("vq_kernels._C").peak
    threads, rounds, best = torch.get_num_threads(), 1 << 15, 0.0
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        operations = peak(unit, threads, rounds)
        best = max(best, operations / (time.perf_counter() - start))
    return best or None


def first_pass_unit(case: Case) -> str:
    """The unit whose roof counts for our search on this CPU: that of its first pass."""
    if native.unavailable_reason() is not None:
        return "float32"
    x, codebook = torch.empty(1, 1, case.d).expand(1, case.n, case.d), torch.empty(case.k, case.d)
    first_pass: str = importlib.import_module("vq_kernels._C").first_pass(
        marshal.rows(x), marshal.codes(codebook)
    )
    return "float32" if first_pass == "direct" else first_pass


def copy_rate(size_bytes: int, device: str = "cpu") -> float:
    """Bytes/s read plus written by a copy of ``size_bytes``."""
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    spread = measure_alone(lambda: target.copy_(source), timer=timer_for(device), budget=_BUDGET)
    return 2.0 * size_bytes / spread.low


def measure_roofs(device: str = "cpu") -> Roofs:
    """Roofs of this machine with the current number of threads."""
    if device == "cuda":
        return _measure_cuda_roofs()
    return Roofs(
        float32=register_rate("float32") or max(matmul_rate(torch.float32, size) for size in (1024, 2048)),
        # Not torch's product: where the processor has no such unit it takes minutes at these sizes.
        bfloat16=register_rate("bfloat16"),
        memory=copy_rate(2**29),  # beyond any last-level cache that is ours alone
        int8=register_rate("int8"),
        int16=register_rate("int16"),
    )


def _measure_cuda_roofs() -> Roofs:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        float32 = max(matmul_rate(torch.float32, size, "cuda") for size in (4096, 8192))
        torch.set_float32_matmul_precision("high")
        tf32 = max(matmul_rate(torch.float32, size, "cuda") for size in (4096, 8192))
    finally:
        torch.set_float32_matmul_precision(before)
    bfloat16 = max(matmul_rate(torch.bfloat16, size, "cuda") for size in (4096, 8192, 16384))
    multiprocessors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    clock = clock_under_load()
    epilogue = None if clock is None else multiprocessors * clock / epilogue_clocks()
    return Roofs(float32, bfloat16, copy_rate(2**30, "cuda"), tf32, epilogue, copy_rate(2**23, "cuda"))


def epilogue_clocks() -> float:
    """Clocks of a multiprocessor for a pair: the scarcer of issue slots and half-rate lanes."""
    return max(EPILOGUE_INSTRUCTIONS / LANES, EPILOGUE_HALF_RATE / HALF_RATE_LANES)


def clock_under_load() -> float | None:
    """Clock of the multiprocessors in Hz while matrix products run; None where the driver's tool is missing.

    Under load it falls below the highest clock, which no kernel of any length keeps.
    """
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    b = torch.empty_like(a)
    for _ in range(1000):  # about two seconds, queued; the tool answers within one
        torch.mm(a, a, out=b)
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return 1e6 * float(shown.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    finally:
        torch.cuda.synchronize()


def lowest_time(case: Case, roofs: Roofs, *, work: str, unit: str = "float32") -> tuple[float, str]:
    """Least seconds that ``work`` could take here, and which roof says so.

    Args:
        work: ``"search"``, ``"forward"`` or ``"step"`` (forward, backward and EMA).
        unit: the arithmetic unit whose roof counts: ``"float32"``, ``"tf32"``, ``"bfloat16"``, ``"int8"``,
            ``"int16"``, or ``"bfloat16 x3"`` for three products.
    """
    passes = 3 if unit.endswith(" x3") else 1
    rate = getattr(roofs, unit.removesuffix(" x3"))
    if rate is None:
        raise ValueError(f"unit is {unit!r}, which was not measured on this machine")
    traffic = {"search": case.search_bytes, "forward": case.forward_bytes, "step": case.step_bytes}[work]
    times = {unit: passes * case.search_flops / rate, "memory": traffic / roofs.memory}
    if roofs.epilogue is not None and unit != "float32":
        times["epilogue"] = case.n * case.k / roofs.epilogue
    if roofs.l2 is not None:
        parts = 2 if passes == 3 else 1
        read = -(-case.n // ROWS_A_TILE) * parts * PART_BYTES * case.k * case.d
        times["L2"] = read / roofs.l2
    roof = max(times, key=lambda name: times[name])
    return times[roof], roof


def main() -> None:
    """Print the roofs of the CPU, and of the GPU where there is one."""
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
        for name, rate in measure_roofs(device).as_json().items():
            if rate is not None:
                print(f"{device:5} {name:9} {rate / 1e9:12.1f} G/s")


if __name__ == "__main__":
    main()
