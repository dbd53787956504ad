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
    if len(codebook) == 0:
        return Packed({}, 0)
    own, tiled_depth = _prepare_for(codebook.dtype, codebook, metric)
    packed = {codebook.dtype: own}
    if codebook.dtype == torch.float32:
        # Rows of 16 bits are not centred, and see other biases (none for cosine); all else is the same.
        of_16_bits = own
        if metric == "l2":
            of_16_bits = own._replace(bias=_prepare_for(torch.bfloat16, codebook, metric)[0].bias)
        packed |= dict.fromkeys((torch.bfloat16, torch.float16), of_16_bits)
    return Packed(packed, tiled_depth)


def _prepare_for(dtype: torch.dtype, codebook: Tensor, metric: str) -> tuple[Prepared, int]:
    """Codes for rows of a dtype, and the depth for which they are tiled, or 0."""
    K, D = codebook.shape
    plan = make_plan(dtype, codebook.dtype, metric, "exact")
    first = first_pass(plan, D)
    tiled_depth = hopper.depth_of_codes(codebook.device, K, D, first)
    config = make_config(common.architecture(codebook.device), first, D)
    counters = torch.empty(int(HEADER.value), dtype=torch.int64, device=codebook.device)
    depth = tiled_depth or padded_depth(config, D)
    codes = prepare(codebook, depth, plan, counters=counters, counts=counters, tiled=tiled_depth > 0)
    return codes, tiled_depth


def packed_codes(
    packed: Packed | None, dtype: torch.dtype, config: Config, tiled_depth: int
) -> Prepared | None:
    """Packed codes for rows of a dtype, or None where they lie otherwise than this search reads them."""
    if packed is None or (codes := packed.codes.get(dtype)) is None:
        return None
    if tiled_depth:
        return codes if tiled_depth == packed.tiled_depth else None
    return codes if codes.high.shape[1] % config.depth == 0 else None
