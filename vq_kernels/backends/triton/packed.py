"""A codebook prepared once for many searches (``vq_kernels.prepare_codebook``)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import common, hopper
from .codes import Prepared
from .common import HEADER
from .plan import Config, first_pass, make_config, make_plan, padded_depth
from .prepare import prepare


class Packed(NamedTuple):
    """A codebook prepared once: for rows of its own dtype, and, where it is float32, for 16-bit rows."""

    codes: dict[torch.dtype, Prepared]
    tiled_depth: int  # as ``hopper.depth_for``; 0 where no search of these codes takes that kernel


def pack(codebook: Tensor, metric: str) -> Packed:
    """The codes as searches of any number of rows and precision read them, most of all exact ones."""
    K, D = codebook.shape
    device = codebook.device
    dtypes = [codebook.dtype]
    if codebook.dtype == torch.float32:
        dtypes += [torch.bfloat16, torch.float16]
    packed: dict[torch.dtype, Prepared] = {}
    tiled_depth = 0
    for dtype in dtypes if K else []:
        plan = make_plan(dtype, codebook.dtype, metric, "exact")
        first = first_pass(plan, D)
        tiled_depth = hopper.depth_of_codes(device, K, D, first)
        config = make_config(common.architecture(device), first, D)
        counters = torch.empty(int(HEADER.value), dtype=torch.int64, device=device)
        codes = prepare(
            codebook,
            tiled_depth or padded_depth(config, D),
            plan,
            counters=counters,
            counts=counters,
            tiled=tiled_depth > 0,
        )
        # Rows that are not centred see other biases; all else is the same.
        packed[dtype] = packed[dtypes[0]]._replace(bias=codes.bias) if packed else codes
    return Packed(packed, tiled_depth)


def packed_codes(
    packed: Packed | None, dtype: torch.dtype, config: Config, tiled_depth: int
) -> Prepared | None:
    """Packed codes for rows of a dtype, or None where they lie otherwise than this search reads them."""
    codes = None if packed is None else packed.codes.get(dtype)
    if packed is None or codes is None:
        return None
    if tiled_depth:
        return codes if tiled_depth == packed.tiled_depth else None
    return codes if codes.high.shape[1] % config.depth == 0 else None
