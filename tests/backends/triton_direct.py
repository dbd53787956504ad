"""Launches as Triton makes them and as ``launch.py`` does, where no GPU need be; results as JSON.

Nothing is compiled: what stands for a compiled kernel notes what it is started with, tuples taken apart and
constants dropped by the kernel's signature as Triton's own launchers do it. The script runs in a process
without the interpreter (``test_triton_direct.py``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton_keys import keys

import vq_kernels as vq
from vq_kernels.backends.triton import TritonBackend, common, launch

Results = dict[str, Any]


class Driver:
    """Stands for the driver of a GPU that is not there, and for its current device and stream."""

    def __init__(self) -> None:
        self.device, self.stream = 0, 7

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.stream + device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Start(NamedTuple):
    """One start of a kernel."""

    kernel: str
    direct: bool
    grid: tuple[int, ...]
    stream: int
    function: str
    hooks: tuple[Any, ...]
    arguments: tuple[Any, ...]


class Recorder:
    """Inside, kernels are not compiled, and their starts are listed."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.compiled = 0
        self.runs = 0  # of Triton's own launch
        self._is_running = False
        self._patches = ExitStack()

    def __enter__(self) -> Recorder:
        run = JITFunction.run

        def counted(jit: Any, *args: Any, **options: Any) -> Any:
            self.runs += 1
            self._is_running = True
            try:
                return run(jit, *args, **options)
            finally:
                self._is_running = False

        def stand_in(jit: Any, key: Any, signature: dict[str, Any], device: Any, *_: Any) -> CompiledKernel:
            self.compiled += 1
            kernel = CompiledKernel.__new__(CompiledKernel)
            kernel.function, kernel.packed_metadata = f"{jit.__name__} {self.compiled}", (4, 1, 0)
            kernel._run = self._starter(jit.__name__, list(signature.values()))
            jit.device_caches[device][0][key] = kernel
            return kernel

        driver.set_active(Driver())
        for owner, name, value in (
            (JITFunction, "run", counted),
            (JITFunction, "_do_compile", stand_in),
            (CompiledKernel, "__del__", lambda kernel: None),
            (CompiledKernel, "launch_metadata", lambda kernel, *_: None),
            (common, "architecture", lambda device: 90),
            (common, "multiprocessors", lambda device: 132),
            (TritonBackend, "unavailable_reason", lambda backend: None),
            (TritonBackend, "unsupported_reason", lambda backend, *_: None),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, value, create=name == "__del__"))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _starter(self, name: str, signature: list[Any]) -> Callable[..., None]:
        def start(x: int, y: int, z: int, stream: int, function: str, _: Any, *rest: Any) -> None:
            hooks, args = rest[:3], rest[3:]
            flat: list[Any] = []
            _flatten(signature, args, flat)
            # An empty chain of hooks does as much as None.
            hooks = tuple(hook for hook in hooks if getattr(hook, "calls", hook))
            started = (name, not self._is_running, (x, y, z), stream, function, hooks, tuple(flat))
            self.starts.append(Start(*started))

        return start


def _flatten(signature: Any, args: Any, flat: list[Any]) -> None:
    """Arguments as a launcher of Triton reads them: the tuples of the signature, without constants."""
    assert len(signature) == len(args), (signature, args)
    for kind, value in zip(signature, args, strict=True):
        if isinstance(kind, tuple):
            assert isinstance(value, tuple)
            _flatten(kind, value, flat)
        elif kind != "constexpr":
            flat.append(value.data_ptr() if isinstance(value, torch.Tensor) else value)


def operations() -> dict[str, Callable[[], object]]:
    """Calls that between them launch every kernel."""
    x, codebook = torch.randn(3, 50, 8), torch.randn(33, 8)
    many, large = torch.randn(5000, 8), torch.randn(9000, 8)
    maps, mask = torch.randn(2, 8, 7, 7).requires_grad_(), torch.ones(2, 7, 7, dtype=torch.bool)
    indices = torch.zeros(3, 50, dtype=torch.int64)
    layer = vq.FusedVectorQuantizer(8, 33, backend="triton")
    rows = x.clone().requires_grad_()

    def step() -> None:
        quantized, _, loss = layer(rows)
        torch.autograd.backward([quantized, loss], [torch.ones_like(quantized), torch.ones(())])

    def masked() -> None:
        got = vq.vector_quantize(
            maps, codebook, mask=mask, channel_dim=1, gradient="rotation_trick", backend="triton"
        )
        got.quantized.sum().backward()

    def average(codes: torch.Tensor) -> None:
        k = len(codes)
        counts, sums, size = torch.ones(k, dtype=torch.int64), torch.ones_like(codes), torch.ones(k)
        vq.ema_update_(
            codes.clone(), size, codes.clone(), counts, sums, decay=0.9, eps=1e-5, backend="triton"
        )

    return {
        "nearest": lambda: vq.nearest_code(x, codebook, backend="triton"),
        "nearest_large": lambda: vq.nearest_code(many, large, backend="triton"),
        "nearest_fast": lambda: vq.nearest_code(many, large, precision="fast", backend="triton"),
        "nearest_some": lambda: vq.nearest_code(many[:300], large, backend="triton"),
        "nearest_half": lambda: vq.nearest_code(x.half(), codebook.half(), metric="cosine", backend="triton"),
        "step": step,
        "masked": masked,
        "statistics": lambda: vq.code_statistics(x, indices, 33, backend="triton"),
        "gather": lambda: vq.gather_codes(codebook, indices, backend="triton"),
        "ema": lambda: average(codebook),
        "ema_large": lambda: average(large),
    }


def launches(recorder: Recorder) -> Results:
    """By kernel, how often it was started directly and as Triton starts it; names of those that were not."""
    direct: dict[str, int] = {}
    different: list[str] = []
    launch_kernel = launch.Kernel._launch

    def both(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
        kernel.jit[grid](*args, **constants)
        launch_kernel(kernel, grid, *args, **constants)
        ordinary, ours = recorder.starts[-2:]
        name = ours.kernel
        direct[name] = direct.get(name, 0) + ours.direct
        if ordinary._replace(direct=ours.direct) != ours:
            different.append(name)

    for call in operations().values():
        call()
    with mock.patch.object(launch.Kernel, "_launch", both):
        for call in operations().values():
            call()
    return {"direct": direct, "different": different}


def host_work(recorder: Recorder) -> Results:
    """Of operations that were called before: functions that Python calls, and launches that Triton makes."""
    counted = {}
    for name, call in operations().items():
        call()
        runs = recorder.runs
        counted[name] = {"calls": function_calls(call), "runs": recorder.runs - runs}
    return counted


def function_calls(work: Callable[[], object]) -> int:
    """Python functions that are called in this thread."""
    count = 0

    def counting(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def watched(recorder: Recorder) -> Results:
    """How one launch is made again and again, while something asks to see it, and on other streams."""
    seen: dict[str, list[Any]] = {}
    work = operations()["gather"]

    def note(name: str) -> None:
        work()
        start = recorder.starts[-1]
        seen[name] = [start.direct, start.stream, len(start.hooks)]

    note("as_before")
    hook = knobs.runtime.launch_enter_hook
    with mock.patch.object(knobs.runtime, "launch_enter_hook", print):
        note("hook")
    hook.add(print)
    note("chain")
    hook.remove(print)
    with mock.patch.object(knobs.runtime, "debug", True):
        note("debug")
    note("after")
    driver.active.stream = 70
    note("other_stream")
    driver.active.device = 3
    note("other_device")
    note("other_device_again")
    return seen


if __name__ == "__main__":
    driver.set_active(Driver())
    report: Results = {"version": triton.__version__, "keys": keys()}
    with Recorder() as recording:
        for part in (launches, host_work, watched):
            report[part.__name__] = part(recording)
    json.dump(report, sys.stdout)
