"""The search's first pass in CUDA C++ on compute capability 9.0 (``csrc/cuda/hopper_search.cu``).

Triton waits for every matrix product before it looks at the scores; the warpgroup's asynchronous product of
this architecture lets one half of the rows be multiplied while the other is reduced. The kernel takes the
place of ``search_kernel`` where a search begins with one product, has rows for every multiprocessor and
many codes, and the native module was compiled for this GPU; what comes before and after it is the same, and
so are the results.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ...build_info import read_build_info
from ...devices import launch_queue_of
from .. import marshal, native
from . import common
from .codes import Prepared
from .common import OPEN_SLOT, RANGE_SLOT
from .plan import Bound, Plan
from .search import OpenRows

TILE = 128  # codes
ROWS = 256  # of a block; there is one on every multiprocessor
DEPTHS = (64, 128, 256)  # D is padded to one of them
LEAST_DIM = 32
# Codes from which on the kernel is the faster one: a block reads its rows before it multiplies. Measured; see
# benchmarks/NOTES.md.
LEAST_CODES = 512


@functools.cache
def module() -> Any:
    """The native module's kernels; None where it does not load or has none for compute capability 9.0."""
    info = read_build_info()
    # What was built may be for another version of Python; the native backend then says so.
    if info is None or not info["cuda"]["built"] or native.unavailable_reason() is not None:
        return None
    if not any(target.startswith("90a") for target in info["cuda"]["targets"]):
        return None
    return getattr(importlib.import_module("vq_kernels._C"), "cuda", None)


def least_rows(device: torch.device) -> int:
    """Rows from which on there is a block for every multiprocessor."""
    return ROWS * common.multiprocessors(device)


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether the kernel can run on a device."""
    return device.type == "cuda" and common.architecture(device) == 90 and module() is not None


def depth_for(x: Tensor, codebook_size: int, plan: Plan) -> int:
    """The depth that codes are tiled for; 0 where Triton's own kernel takes the search."""
    B, M, D = x.shape
    depth = depth_of_codes(x.device, codebook_size, D, plan)
    return depth if depth and least_rows(x.device) <= B * M else 0


def depth_of_codes(device: torch.device, codebook_size: int, dim: int, plan: Plan) -> int:
    """``depth_for`` of as many rows as the kernel is made for."""
    if plan.products > 1 or not plan.pack or not LEAST_DIM <= dim <= DEPTHS[-1]:
        return 0
    if codebook_size < LEAST_CODES or not works_on(device):
        return 0
    return next(depth for depth in DEPTHS if depth >= dim)


def search(
    x: Tensor,
    mask: Tensor | None,
    codes: Prepared,
    codebook_size: int,
    plan: Plan,
    bound: Bound,
    open_rows: OpenRows,
    counters: Tensor,
    indices: Tensor,
    *,
    measure_range: bool,
) -> None:
    """``launch_search`` of ``nearest.py`` for all rows, of codes with tiles."""
    device, stream = launch_queue_of(x)
    at = counters.data_ptr()
    module().hopper_search(
        marshal.rows(x),
        (
            codes.tiles.data_ptr(),
            codes.bias.data_ptr(),
            codes.center.data_ptr(),
            codes.extremes.data_ptr(),
            codes.extremes.shape[0],
            codebook_size,
            *codes.high.shape,
        ),
        (plan.split, plan.centered_rows, plan.l2, plan.exact),
        (bound.main, bound.contract, bound.slack, bound.scale),
        (
            marshal.address(mask),
            at + 8 * int(OPEN_SLOT.value),
            at + 8 * int(RANGE_SLOT.value) if measure_range else 0,
            indices.data_ptr(),
            open_rows.rows.data_ptr(),
            open_rows.ceiling.data_ptr(),
        ),
        device,
        stream,
    )
