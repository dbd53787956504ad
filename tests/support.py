"""Inputs and independent truths that the tests share."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from operator import mul
from typing import Any

import torch
from torch import Tensor

from vq_kernels.backends import QuantizeOptions, QuantizeResult, reference

# name -> (channel_dim, function that gives a tensor of vectors of length D with that layout)
LAYOUTS: dict[str, tuple[int, Callable[[int, int, int, torch.dtype], Tensor]]] = {
    "rows": (-1, lambda b, m, d, t: torch.randn(b * m, d).to(t)),
    "channel_last": (-1, lambda b, m, d, t: torch.randn(b, m, d).to(t)),
    "sliced_channels": (-1, lambda b, m, d, t: torch.randn(b, m, d + 3).to(t)[..., 1 : 1 + d]),
    "every_other_row": (-1, lambda b, m, d, t: torch.randn(b, 2 * m, d).to(t)[:, ::2]),
    "transposed_batch": (-1, lambda b, m, d, t: torch.randn(m, b, d).to(t).transpose(0, 1)),
    "expanded": (-1, lambda b, m, d, t: torch.randn(m, d).to(t).expand(b, m, d)),
    "channel_first_1d": (1, lambda b, m, d, t: torch.randn(b, d, m).to(t)),
    "channel_first_2d": (1, lambda b, m, d, t: torch.randn(b, d, m, 2).to(t)),
    "channel_first_3d": (1, lambda b, m, d, t: torch.randn(b, d, 2, m, 1).to(t)),
    "channels_last_memory": (
        1,
        lambda b, m, d, t: torch.randn(b, d, m, 2).to(t).to(memory_format=torch.channels_last),
    ),
    "three_strided_levels": (-1, lambda b, m, d, t: torch.randn(2, 3 * b, 2, m, d).to(t)[:, ::3, 1::2]),
}

# (batch, rows, D, K); odd, and around the edges of tiles
SIZES = [(1, 1, 1, 1), (1, 7, 3, 5), (2, 9, 8, 17), (3, 21, 33, 63), (1, 130, 16, 129)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def is_interpreted(backend: str) -> bool:
    """Whether the kernels of ``backend`` run in Triton's interpreter here."""
    return os.environ.get("VQ_TEST_DEVICE", "cpu") == "cpu" and backend == "triton"


def is_slow(backend: str) -> bool:
    """Whether ``backend`` stands in for a GPU here: its kernels take seconds, not microseconds."""
    return is_interpreted(backend) or backend == "cuda_host"


def sizes_for(backend: str, layout: str, dtype: torch.dtype) -> list[tuple[int, int, int, int]]:
    """All sizes, or where kernels are slow one for each layout and dtype, in turn."""
    if not is_slow(backend):
        return SIZES
    return [SIZES[(list(LAYOUTS).index(layout) + 2 * DTYPES.index(dtype)) % len(SIZES)]]


def rows_of(x: Tensor, channel_dim: int) -> Tensor:
    """``[N, D]`` in the order of the leading dimensions."""
    return x.movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])


def quantize_into(
    quantized: Tensor,
    backend: Any,
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None = None,
    precision: str = "exact",
    loss_weight: float = 1.0,
) -> QuantizeResult:
    """The fused step of a backend on rows ``[B, M, D]``, with statistics."""
    options = QuantizeOptions(
        "l2", precision, -1, statistics=True, keep_codes=False, backend=None, commitment_weight=loss_weight
    )
    return backend.vector_quantize(x, codebook, mask, options, quantized, None)


def whole_numbers(*tensors: Tensor) -> list[list[list[int]]]:
    """The values of ``[N, D]`` tensors in one unit that divides all: exact, and far faster than fractions."""
    ratios = [[[v.as_integer_ratio() for v in row] for row in t.tolist()] for t in tensors]
    unit = max((d for rows in ratios for row in rows for _, d in row), default=1)  # all are powers of two
    return [[[n * (unit // d) for n, d in row] for row in rows] for rows in ratios]


def remembered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` of tensors and names, asked once for each input: many paths are held to the same truth."""
    known: dict[bytes, Tensor] = {}

    @functools.wraps(function)
    def ask(*arguments: Tensor | str) -> Tensor:
        key = hashlib.blake2b()
        for value in arguments:
            if isinstance(value, Tensor):
                key.update(f"{value.dtype} {value.device} {tuple(value.shape)} ".encode())
                dense = value.cpu().clone(memory_format=torch.contiguous_format)
                key.update(dense.view(torch.uint8).numpy())
            else:
                key.update(value.encode())
        if key.digest() not in known:
            known[key.digest()] = function(*arguments)
        return known[key.digest()].clone()

    return ask


@remembered
def exact_codes(x: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    """What the reference backend finds for rows ``[B, M, D]``."""
    return reference.nearest_code(x, codebook, metric, "exact")


@remembered
def rational_argmin(rows: Tensor, codebook: Tensor, metric: str = "l2") -> Tensor:
    """The truth: lowest index of the smallest exact score of each row of ``[N, D]``.

    The score is |x - e|^2 less |x|^2, which is the same for all codes, or -x . e for cosine.
    """
    x, codes = whole_numbers(rows, codebook)
    lengths = [sum(map(mul, e, e)) if metric == "l2" else 0 for e in codes]
    winners = []
    for row in x:
        scores = [length - 2 * sum(map(mul, row, e)) for length, e in zip(lengths, codes, strict=True)]
        winners.append(scores.index(min(scores)))
    return torch.tensor(winners, dtype=torch.int64)


def check_found(got: Tensor, x: Tensor, codebook: Tensor, precision: str, first: int | None = None) -> None:
    """Indices ``[N]`` of rows ``[N, D]`` under l2, of a search on any device.

    ``exact`` and ``high`` have to find the nearest code. ``fast`` rounds the numbers themselves on a matrix
    unit, so that its code is as near but for two such roundings. Codes from ``first`` on are as near to every
    row as one before: none of them is the answer.
    """
    scores = 0.5 * codebook.double().square().sum(1) - x.double() @ codebook.double().T
    if precision == "fast":
        excess = scores.gather(1, got[:, None])[:, 0] - scores.amin(1)
        assert (excess <= 2 * 2.0**-7 * x.double().norm(dim=1) * codebook.double().norm(dim=1).amax()).all()
    else:
        assert torch.equal(got, exact_codes(x[None], codebook)[0])
    assert first is None or (got < first).all()


def float64_argmin(rows: Tensor, codebook: Tensor) -> Tensor:
    """Argmin of float64 |x - e|^2, for data without near-ties."""
    difference = rows.double()[:, None] - codebook.double()[None]
    return difference.square().sum(-1).argmin(1)
