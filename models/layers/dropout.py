"""Dropout at a small share of a step's time: its masks are cut from random words, four from each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # of the 16 bits that decide about an element


class Dropout(nn.Module):
    """Zeroes each element with ``probability`` in training and divides the others by what is left of 1.

    On the CPU ``torch.nn.Dropout`` draws its masks one element at a time, which takes longer than the
    layers around it. Here an element gets 16 bits of a random word: the probability is exact to
    2^-17, and the elements that stay are divided by the probability with which they really do. On a GPU, and
    where the model is compiled, torch's own dropout costs nothing of that kind and is used.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape; the noise comes from torch's global generator."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.probability)
        return x * keep_mask(x.shape, self.probability, x)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def keep_mask(shape: Sequence[int], probability: float, like: Tensor) -> Tensor:
    """0 with ``probability``, else what keeps the mean at 1: ``shape`` in ``like``'s dtype, on the CPU."""
    count = math.prod(shape)
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    # Signed 16-bit numbers, of which the lowest are dropped; a multiplication by floats is vectorised, one by
    # booleans is not.
    keep = words.view(torch.int16)[:count] >= dropped - _LEVELS // 2
    return keep.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(*shape)


def drop_keys(value: Tensor, probability: float) -> Tensor:
    """Attention dropout that leaves the fused attention in place: values ``[B, heads, N, d]``, some zero.

    A value that is zero contributes nothing to any query, as if its attention weight had been dropped for all
    of them: the columns of the matrix of weights that DropAttention drops (arXiv:1907.11065), without its
    renormalisation. Dropping each weight by itself needs the N x N matrix, which the fused attention never
    stores; on the CPU torch computes it then, at more than the price of the rest of the step.
    """
    return value * F.dropout(value.new_ones(*value.shape[:-1], 1), probability)
