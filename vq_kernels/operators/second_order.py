"""The gradients of the fused step as plain tensor operations, which autograd differentiates once more.

For ``create_graph=True`` (gradient penalties, Hessian-vector products) and ``torch.func.grad``. The loss is
quadratic in x and, with ``codebook_weight``, in the codes, each held fixed for the other; the estimators are
linear in the incoming gradient, with a rotation that counts as a constant (arXiv:2410.06424, section 4.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import QuantizeOptions
from ..backends.reference.quantize import only_of_codes, rotate_back
from .statistics import compute_dtype


def gradient_for_x(
    grad_quantized: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    codes: Tensor,
    indices: Tensor,
    valid_rows: Tensor,
    options: QuantizeOptions,
) -> Tensor:
    """What ``vector_quantize_backward`` computes, of x's shape and dtype."""
    compute = compute_dtype(x)
    rows = x.movedim(options.channel_dim, -1).to(compute)  # [..., D]
    nearest = F.embedding(indices.clamp(0, codes.shape[0] - 1), codes.detach()).to(compute)  # [..., D]
    total = torch.zeros_like(rows)  # [..., D]
    if grad_quantized is not None:
        total = grad_quantized.movedim(options.channel_dim, -1).to(compute)
        if options.gradient == "rotation_trick":
            total = rotate_back(total, rows.detach(), nearest)
    if grad_loss is not None:
        scale = 2.0 * options.commitment_weight / codes.shape[1]
        total = total + grad_loss.to(compute) * scale / valid_rows.clamp(min=1) * (rows - nearest)
    total = only_of_codes(total, indices, codes.shape[0])
    return total.movedim(-1, options.channel_dim).to(x.dtype)


def differences_by_codes(differences: Tensor, counts: Tensor, codes: Tensor) -> Tensor:
    """The sums of x - e ``[K, D]`` as what they are of the codes: ``-counts`` is their derivative."""
    codes = codes.to(differences.dtype)
    return differences - counts.unsqueeze(1) * (codes - codes.detach())
