"""How many of its codes a model uses, found on a sample before time is spent on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 1024  # images


def say_if_collapsed(
    codes: Sequence[Tensor], codebook_sizes: Sequence[Sequence[int]], items: str = "images"
) -> None:
    """Say on standard error which levels use hardly any of their codes, at most one in 32 or a single one.

    codes: of some images at every level, top first, as models give them. codebook_sizes: of each level, the
    number of values of each of a position's Q codes. items: what they are called in the message.
    """
    for level, (maps, sizes) in enumerate(zip(codes, codebook_sizes, strict=True)):
        for number, (column, size) in enumerate(
            zip(maps.reshape(-1, len(sizes)).unbind(1), sizes, strict=True)
        ):
            used = len(torch.unique(column))
            if size > 1 and used <= max(1, size // 32):
                stage = f", code {number} of {len(sizes)}" if len(sizes) > 1 else ""
                print(
                    f"level {level}{stage}: {used} of {size} codes in use in {len(maps)} {items}; the "
                    f"codebook has collapsed: train again with --kmeans-init, --dead-code-threshold 1 "
                    f"or a lower learning rate, whichever it had not",
                    file=sys.stderr,
                )
