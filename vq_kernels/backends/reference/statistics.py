"""Rows per code and their sums."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of losses, sums and gradients' arithmetic: float32, or float64 for float64 x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def code_statistics(
    x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1]).to(compute_dtype(x))  # [N, D]
    slots = indices.reshape(-1)  # [N]
    keep = (slots >= 0) & (slots < codebook_size)  # [N]
    if skip_nonfinite:
        keep = keep & rows.isfinite().all(1)  # [N]
    # Rows left out go to one slot past the codes, which is dropped at the end.
    slots = torch.where(keep, slots, codebook_size)  # [N]
    counts = torch.bincount(slots, minlength=codebook_size + 1)  # [K + 1]
    # Sorted by code, each code's rows are one segment, summed in the order of the batch in float64.
    ordered = rows[slots.argsort(stable=True)].double()  # [N, D]
    sums = torch.segment_reduce(ordered, "sum", lengths=counts, axis=0, initial=0.0)  # [K + 1, D]
    return counts[:codebook_size].contiguous(), sums[:codebook_size].to(rows.dtype).contiguous()
