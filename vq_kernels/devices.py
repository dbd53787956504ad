"""What is asked of a device besides running kernels: which one is current, its stream, what waiting costs.

A type of device that launches on a current device and a current stream is one entry of ``_RUNTIMES``,
whose module has torch.cuda's interface. The CPU is not among them: there nothing is launched, and a
value may be read at any time.
"""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

_RUNTIMES: dict[str, ModuleType] = {"cuda": torch.cuda}
_UNCHANGED = contextlib.nullcontext()  # one for all calls: entering it changes nothing


class LaunchQueue(NamedTuple):
    """Where a kernel is launched: the device's number and the handle of its current stream."""

    device: int
    stream: int


def current_device_of(t: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which the tensor's device is the current one, on which backends launch."""
    device = t.device
    runtime = _RUNTIMES.get(device.type)
    if runtime is None or device.index == runtime.current_device():
        return _UNCHANGED
    guard: contextlib.AbstractContextManager[object] = runtime.device(device)
    return guard


def launch_queue_of(t: Tensor) -> LaunchQueue:
    """The device's number and the current stream; zeros where nothing is launched."""
    device = t.device
    runtime = _RUNTIMES.get(device.type)
    if runtime is None:
        return LaunchQueue(0, 0)
    return LaunchQueue(device.index, runtime.current_stream(device).cuda_stream)


def is_capturing(t: Tensor) -> bool:
    """Whether work on the tensor's device is being recorded, as into a CUDA graph: nothing may be read."""
    runtime = _RUNTIMES.get(t.device.type)
    return runtime is not None and bool(runtime.is_current_stream_capturing())


def moved_or_zero(t: Tensor, device: torch.device) -> Tensor:
    """``t`` on ``device``, with zeros if it comes from the meta device and so has no values."""
    return torch.zeros_like(t, device=device) if t.is_meta else t.to(device)


def is_host_readable(t: Tensor) -> bool:
    """Whether the host may read values without waiting for a device: on the CPU alone."""
    return t.device.type == "cpu"
