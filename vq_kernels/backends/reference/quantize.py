"""The fused step: what it is told, what it gives, and its two passes.

The types of the options and of the result stand here, so that the definition reads alone; the contract
(``backends/base.py``) and every layer above it use the same two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .search import nearest_code
from .statistics import code_statistics, compute_dtype


class QuantizeOptions(NamedTuple):
    """Everything that the fused operation is told besides tensors; it travels whole to the kernel.

    The operator's schema and the packing of its arguments are made from these fields, in this order.
    Programs that were exported name options by position, so a new one is appended, with a default
    that changes nothing. For example, ``QuantizeOptions("l2", "exact", -1, True, False, None)`` is a
    plain l2 search with statistics whose loss is the mean squared error.
    """

    metric: str  # "l2" or "cosine"
    precision: str  # "exact", "high" or "fast"
    channel_dim: int  # -1 or 1, of the caller's x; kernels see [B, M, D] always
    statistics: bool  # whether counts and sums are wanted
    keep_codes: bool  # whether the backward pass needs a copy of the codebook as it was searched
    backend: str | None  # the backend that the caller asked for by name
    gradient: str = "straight_through"  # or "rotation_trick"
    commitment_weight: float = 1.0
    codebook_weight: float = 0.0
    sum_differences: bool = False  # whether sums are of x - e, what the codebook's gradient is made of

    @property
    def loss_weight(self) -> float:
        """The factor between the mean squared error and the loss."""
        return self.commitment_weight + self.codebook_weight


class QuantizeResult(NamedTuple):
    """What the fused operation gives, in one order from the kernel to the public function.

    Shapes for x ``[B, M, D]`` and codebook ``[K, D]``; float32 stands for float64 where x is float64.
    For example, x ``[1, 1024, 64]`` and codebook ``[512, 64]`` give ``[1, 1024, 64]``, ``[1, 1024]``,
    ``[]``, ``[]``, ``[512]``, ``[512, 64]`` and, with ``keep_codes``, ``[512, 64]``.
    """

    quantized: Tensor  # [B, M, D] of x's dtype: the nearest code of each row, zero where masked
    indices: Tensor  # [B, M] int64, -1 where masked
    loss: Tensor  # [] float32: loss_weight times the mean over unmasked rows and D of (e - x)^2
    valid_rows: Tensor  # [] int64, the number of unmasked rows
    counts: Tensor  # [K] int64: rows of each code; [0] without statistics
    # [K, D] float32: sum of the rows of each code, or of their differences x - e with ``sum_differences``;
    # [0, D] without statistics
    sums: Tensor
    codebook_copy: Tensor | None  # [K, D] of the codebook's dtype; None without keep_codes


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    options: QuantizeOptions,
    quantized: Tensor,
    codebook_copy: Tensor | None,
) -> QuantizeResult:
    if codebook_copy is not None:
        codebook_copy.copy_(codebook)  # [K, D]
    compute = compute_dtype(x)
    indices = nearest_code(x, codebook, options.metric, options.precision)  # [B, M]
    nearest = codebook[indices].to(compute)  # [B, M, D]
    finite = x.isfinite().all(-1)  # [B, M]
    codes = torch.where(finite[..., None], nearest, torch.nan)  # [B, M, D]
    squared = (codes - x.to(compute)).double().square().sum(-1)  # [B, M]
    valid_rows = torch.tensor(indices.numel(), dtype=torch.int64, device=x.device)  # []
    if mask is not None:
        codes = torch.where(mask[..., None], codes, 0.0)  # [B, M, D]
        squared = torch.where(mask, squared, 0.0)  # [B, M]
        indices = torch.where(mask, indices, -1)  # [B, M]
        valid_rows = mask.sum()  # []
    quantized.copy_(codes)  # [B, M, D]
    mse = (squared.sum() / (valid_rows * x.shape[-1]).clamp(min=1)).to(compute)  # []
    if options.statistics:
        summed = x  # [B, M, D]
        if options.sum_differences:
            # Row by row: where both are large and near, the difference of their sums is lost to rounding.
            summed = x.double() - nearest.double().nan_to_num(0.0, 0.0, 0.0)
        slots = torch.where(finite, indices, -1)  # [B, M]
        counts, sums = code_statistics(summed, slots, codebook.shape[0], skip_nonfinite=False)  # [K], [K, D]
        sums = sums.to(compute)
    else:
        counts, sums = indices.new_empty(0), x.new_empty((0, x.shape[-1]), dtype=compute)
    loss = mse * options.loss_weight  # []
    return QuantizeResult(quantized, indices, loss, valid_rows, counts, sums, codebook_copy)


def vector_quantize_backward(
    grad_quantized: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    valid_rows: Tensor,
    scale: float,
    gradient: str,
    out: Tensor,
) -> None:
    compute = compute_dtype(x)
    x = x.to(compute)  # [B, M, D]
    codes = codebook[indices.clamp(0, codebook.shape[0] - 1)].to(compute)  # [B, M, D]
    result = torch.zeros_like(x)  # [B, M, D]
    if grad_quantized is not None:
        g = grad_quantized.to(compute)  # [B, M, D]
        result = g if gradient == "straight_through" else rotate_back(g, x, codes)
    if grad_loss is not None:
        loss_grad = grad_loss.to(compute) * scale / valid_rows.clamp(min=1)  # []
        result = result + loss_grad * (x - codes)  # [B, M, D]
    out.copy_(only_of_codes(result, indices, codebook.shape[0]))


def only_of_codes(gradient: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    """0 in rows with index -1, NaN in those whose index names no code: it was written since."""
    names_a_code = (indices >= 0) & (indices < codebook_size)  # [B, M]
    otherwise = torch.where(indices == -1, 0.0, torch.nan).to(gradient.dtype)  # [B, M]
    return torch.where(names_a_code[..., None], gradient, otherwise[..., None])  # [B, M, D]


def rotate_back(g: Tensor, x: Tensor, codes: Tensor) -> Tensor:
    """Transpose of the rotation that takes x/|x| to e/|e|, rescaled by |e|/|x| (arXiv:2410.06424, 4.2)."""
    x_norm = x.norm(dim=-1, keepdim=True).clamp(min=1e-6)  # [B, M, 1]
    e_norm = codes.norm(dim=-1, keepdim=True)  # [B, M, 1]
    u = x / x_norm  # [B, M, D]
    q = codes / e_norm.clamp(min=1e-6)  # [B, M, D]
    w = u + q  # [B, M, D]
    w = w / w.norm(dim=-1, keepdim=True).clamp(min=1e-6)  # [B, M, D]
    along_w = 2 * (g * w).sum(-1, keepdim=True) * w  # [B, M, D]
    along_u = 2 * (g * q).sum(-1, keepdim=True) * u  # [B, M, D]
    return e_norm / x_norm * (g - along_w + along_u)
