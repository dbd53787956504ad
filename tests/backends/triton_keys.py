"""Keys of launches, Triton's and those of ``launch.py``, for arguments that differ in all ways that matter.

Part of ``triton_direct.py``, whose driver stands for that of a GPU.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.runtime.jit import compute_cache_key

from vq_kernels.backends.triton import launch
from vq_kernels.backends.triton.common import View


@triton.jit
def some_kernel(a, b, n, D: tl.constexpr, plan: tl.constexpr):
    pass


class Plan(NamedTuple):
    exact: bool
    parts: int


def arguments() -> list[Any]:
    """Tensors, numbers and tuples in all ways that could make a difference."""
    memory = torch.zeros(64, dtype=torch.float64)
    tensors = [
        memory.view(dtype)[start:]
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)
        for start in (0, 1, 16)
    ]
    tensors += [torch.empty(0), torch.nn.Parameter(torch.zeros(8)), torch.zeros(4, 4).t()]
    edges = (0, 1, 16, 2**31, -(2**31), 2**32, 2**62, 2**63 - 16, -(2**63) + 16)
    numbers = [edge + step for edge in edges for step in (-16, -1, 0, 1, 15)]
    floats = [0.0, 1.0, 0.5, 16.0]
    views = [
        View(x, stride_b, stride_m, stride_d)
        for x in (tensors[0], tensors[1], tensors[3])
        for stride_b in (None, 64, 65, 2**31)
        for stride_m in (tl.constexpr(1), tl.constexpr(16), tl.constexpr(24), 1, 16, 24)
        for stride_d in (1, 7)
    ]
    return [*tensors, *numbers, *floats, None, *views]


def calls() -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls of ``some_kernel``: run-time arguments; constants and options."""
    x = torch.zeros(16)
    usual = {"D": 8, "plan": Plan(True, 1), "num_warps": 4}
    listed = [((value, x, 5), usual) for value in arguments()]
    listed += [((x, value, 5), usual) for value in arguments()[::3]]
    for d, plan, warps, n in itertools.product((8, 16), (Plan(True, 1), Plan(True, 2)), (4, 8), (1, 16, 17)):
        listed.append(((x, None, n), {"D": d, "plan": plan, "num_warps": warps}))
    listed += [((x, x, 5), usual | {"maxnreg": 128}), ((x, x, 5), usual | {"num_stages": 4})]
    return listed


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    if isinstance(value, torch.Tensor):
        return f"{type(value).__name__} of {value.dtype} at {value.data_ptr() % 16}"
    return repr(value)


def keys() -> dict[str, Any]:
    """Pairs of calls that only one of Triton and ``launch.py`` tells apart."""
    *_, binder = some_kernel.create_binder()
    known: dict[Any, Any] = {}
    of_ours: dict[Any, Any] = {}
    of_triton: dict[Any, Any] = {}
    told_apart_by: dict[str, list[str]] = {"triton": [], "launch": []}
    for args, constants in calls():
        ours = launch.launch_key(0, constants)
        launch.specialise(args, ours)
        _, specialization, options = binder(*args, **constants)
        theirs = compute_cache_key(known, specialization, options)
        described = f"{_described(args)} {constants}"
        if of_ours.setdefault(tuple(ours), theirs) != theirs:
            told_apart_by["triton"].append(described)
        if of_triton.setdefault(theirs, ours) != ours:
            told_apart_by["launch"].append(described)
    unknown = []
    for value in (True, 2**63, -(2**63) - 1, "text", (1, 2), [1], torch.float32):
        try:
            launch.specialise((value,), [])
        except launch.UnknownKindError:
            unknown.append(str(value))
    return {"calls": len(calls()), "keys": len(of_ours), "told_apart_by": told_apart_by, "unknown": unknown}
