"""Losses that autoencoders and priors share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 where autocast has made 16 bits of it: sums and differences of a loss need more."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean over all elements, 0 (with a gradient) where there are none: ``[]``."""
    return values.mean() if values.numel() else values.sum()


def gradient_difference(x: Tensor, y: Tensor) -> Tensor:
    """The mean absolute difference between the gradients of ``x`` and of ``y``, ``[B, C, *S]``: ``[]``.

    A gradient is the difference of two neighbours; the means along the axes of S are added up (Mathieu et
    al., 2016, arXiv:1511.05440, with the signs kept). An axis of one value has none and adds 0.
    """
    error = x - y
    along = [mean_or_zero(error.diff(dim=axis).abs()) for axis in range(2, error.ndim)]
    total = along[0]
    for one in along[1:]:
        total = total + one
    return total


def log_softmax_at(logits: Tensor, classes: Tensor) -> Tensor:
    """The log-probability of classes ``[B, *S]`` under logits ``[B, K, *S]``, in nats: ``[B, *S]``.

    It is computed as ``-cross_entropy`` of rows: the kernel for maps is not deterministic on a GPU, that for
    rows is.
    """
    rows = logits.movedim(1, -1)
    nats = F.cross_entropy(rows.flatten(0, -2), classes.flatten(), reduction="none")
    return -nats.view(classes.shape)
