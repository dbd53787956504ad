"""``python -m benchmarks.gpu.kernels``: how long each kernel of a call takes on this GPU.

Searches with the first pass in CUDA C++ (``triton/hopper.py``), where it takes them, and in Triton, timed in
turn; searches of the CUDA C++ backend beside Triton's; and the layer's training step. Between the sum of the
kernels and a call lies what the host spends.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .. import layers
from ..measure import Call, measure_pairs, timer_for
from ..peers import our_search
from ..work import Case, make_inputs
from .bench import BUDGET, TINY_BUDGET
from .target import Target, add_arguments, open_target

REPEATS = 5
CASES = tuple(
    Case(2**26 // d, d, k, dtype=dtype)
    for k in (8192, 512)
    for d in (64, 128, 256)
    for dtype in (torch.float32, torch.bfloat16)
)
LAYER = Case(2**20, 64, 512)
TINY = (Case(64, 32, 16),)


@contextmanager
def without_hopper() -> Iterator[None]:
    """Inside, Triton's own kernel takes every first pass."""
    from vq_kernels.backends.triton import hopper  # its kernels, which not every machine can import

    with mock.patch.object(hopper, "works_on", return_value=False):
        yield


def kernel_times(call: Call) -> Counter[str]:
    """Milliseconds on the device in one call, by the kernel's name; empty where nothing is recorded."""
    call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(REPEATS):
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in recorded.events() or ():
        if event.device_type == DeviceType.CUDA:
            times[event.name] += event.time_range.elapsed_us() / REPEATS / 1e3
    return times


def show(name: str, call: Call, milliseconds: float) -> None:
    """The call's time, and a line for each kernel."""
    print(f"{name:<64}{milliseconds:>9.3f} ms", flush=True)
    for kernel, time in kernel_times(call).most_common():
        print(f"    {time:>9.4f} ms  {kernel.removeprefix('void ')[:70]}", flush=True)


def compare_first_passes(case: Case, precision: str, target: Target) -> None:
    """A search as it is, and with Triton's first pass, in pairs in turn."""
    x, codebook = make_inputs(case, target.device)
    search = our_search(x, codebook, precision=precision, backend="triton")

    def triton() -> object:
        with without_hopper():
            return search()

    budget = target.choose(BUDGET, TINY_BUDGET)
    pairs = measure_pairs(search, triton, timer=timer_for(target.device), budget=budget)
    show(f"search {precision} {case.shape}", search, 1e3 * pairs.ours_s.median)
    show(f"the same, first pass in Triton: {pairs.ratio.median:.2f}x", triton, 1e3 * pairs.peer_s.median)


def compare_backends(case: Case, precision: str, target: Target) -> None:
    """A search of the CUDA C++ backend, with its kernels, and one of Triton's, in pairs in turn."""
    x, codebook = make_inputs(case, target.device)
    search, triton = (
        our_search(x, codebook, precision=precision, backend=target.backend(name))
        for name in ("cuda", "triton")
    )
    budget = target.choose(BUDGET, TINY_BUDGET)
    pairs = measure_pairs(search, triton, timer=timer_for(target.device), budget=budget)
    name = f"CUDA C++ {precision} {case.shape}, {pairs.ratio.median:.2f}x as fast as Triton"
    show(name, search, 1e3 * pairs.ours_s.median)


def main(arguments: list[str] | None = None) -> int:
    """0 when done, 2 without a CUDA GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.kernels", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if (target := open_target(options.rehearse, "kernels")) is None:
        return 2
    for case in target.choose(CASES, TINY):
        for precision in ("exact", "fast"):
            compare_first_passes(case, precision, target)
            compare_backends(case, precision, target)
    case = target.choose(LAYER, TINY[0])
    step = layers.training_step(
        layers.our_layer(case, target.device, "triton"),
        make_inputs(case, target.device)[0][None].requires_grad_(),
    )
    pairs = measure_pairs(
        step, step, timer=timer_for(target.device), budget=target.choose(BUDGET, TINY_BUDGET)
    )
    show(f"layer, forward + backward + EMA: {case.shape}", step, 1e3 * pairs.ours_s.median)
    return 0


if __name__ == "__main__":
    sys.exit(main())
