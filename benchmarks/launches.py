"""GPU launches in one call, counted by the profiler, and calls captured in a CUDA graph."""

from __future__ import annotations

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .measure import Call


class NothingRecorded(RuntimeError):
    """The profiler saw no device activity."""


def device_activities(call: Call) -> list[str]:
    """Names of the kernels, copies and fills that one call starts on the GPU, in order.

    Raises:
        NothingRecorded: the profiler cannot see the GPU here (driver or permissions).
    """
    call()  # whatever happens once only
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    events = [e for e in recorded.events() or () if e.device_type == DeviceType.CUDA]
    events = [e for e in events if not getattr(e, "is_user_annotation", False)]
    if not events:
        raise NothingRecorded("torch.profiler recorded no device activity on this machine")
    return [e.name for e in sorted(events, key=lambda e: e.time_range.start)]


def count_launches(call: Call) -> int | None:
    """How many device activities one call starts; None where the profiler cannot see the GPU."""
    try:
        return len(device_activities(call))
    except NothingRecorded:
        return None


def captured(call: Call) -> Call:
    """The call as one CUDA graph: replaying it repeats the work on the same memory.

    Whoever replays it keeps the call as well, and with it the tensors that the graph reads.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(kept: Call = call) -> None:
        graph.replay()

    return replay
