"""``vector_quantize``: search, gather, squared error and statistics in four launches.

1. prepare the codebook, copy it where asked to, and zero the counters (``prepare.py``);
2. search (``search.py``), which also finds the largest |x|;
3. resolve the rows that an exact search leaves open (``resolve.py``);
4. write, for every row, the code, the squared error and, into integer accumulators, the statistics: x
   is read a second time, while nothing else of size N x D but the output exists. The last program
   adds up the squared error, in an order that N alone fixes, and turns the sums into float32.

A large codebook takes two launches more: one that excludes duplicates, and one for its sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import QuantizeOptions, QuantizeResult
from . import common, few
from .common import VALID_SLOT, WRITE_TICKET
from .launch import Kernel
from .nearest import resolve, search
from .packed import Packed
from .statistics import (
    accumulators,
    add_rows,
    copies,
    cut_off,
    float_sums,
    row_bits,
    stored_largest,
    to_float_sums,
    unit_exponent,
)

# Programs of the writing pass for each multiprocessor. With registers for six at a time, eight equal shares
# took two rounds, the second with most of the GPU idle; of 32 the last round is a small part.
WRITERS = 32

# Elements of the sums up to which the last program of the writing pass converts them: about 20 us.
CONVERTED_BY_ONE = 1 << 18


class Outputs(NamedTuple):
    """Where the writing pass leaves its results besides the quantized rows."""

    loss: Any  # [] float32
    valid_rows: Any  # [] int64
    counts: Any  # [K] int64
    sums: Any  # [K, D] float32
    error: Any  # scratch: [row tiles] float64


@triton.jit
def write_rows(
    row, row_in_range, index, x, codebook, out, counts, accumulators, largest, row_bits, M,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, STATISTICS: tl.constexpr,
    DIFFERENCES: tl.constexpr,
):  # fmt: skip
    """Code and statistics of rows whose index is known, -1 if masked; returns their squared error."""
    exponent = unit_exponent(largest=largest, row_bits=row_bits)
    valid = index >= 0
    code = tl.where(valid, index, 0)
    tile = common.row_tile(view=x, row=row, valid=valid, M=M)
    out_tile = common.row_tile(view=out, row=row, valid=row_in_range, M=M)
    finite = common.row_is_finite(tile=tile, D=D, BLOCK_DIM=BLOCK_DIM, BLOCK_ROWS=BLOCK_ROWS)
    squared = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in tl.static_range(0, D, BLOCK_DIM):
        d = start + tl.arange(0, BLOCK_DIM)
        v = common.load_chunk(tile=tile, d=d, D=D).to(tl.float32)
        e = common.load_codes(codebook=codebook, code=code, valid=valid, d=d, D=D)
        e = tl.where(valid[:, None] & (finite == 0)[:, None], float("nan"), e)
        difference = tl.where(valid[:, None] & (d < D)[None, :], e - v, 0.0)
        squared += tl.sum(difference * difference, 1)
        common.store_chunk(tile=out_tile, d=d, values=e, D=D)
        if STATISTICS:
            if DIFFERENCES:
                v -= cut_off(codes=e, largest=largest)
            add_rows(
                sums=accumulators, counts=counts, exponent=exponent, code=code, valid=valid & finite,
                v=v, d=d, FIRST=start == 0, D=D,
            )  # fmt: skip
    return tl.sum(squared.to(tl.float64))


@Kernel
@triton.jit
def write_kernel(
    x, indices, codebook, out, outputs, counters, accumulators, loss_weight, row_bits, N, M, K,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, HAS_MASK: tl.constexpr,
    STATISTICS: tl.constexpr, DIFFERENCES: tl.constexpr, COPIES: tl.constexpr, CONVERT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """CONVERT: the last program to arrive turns the sums into float32. DIFFERENCES: they are of x - e."""
    pid = tl.program_id(0)
    largest = tl.zeros((), tl.float32)
    if STATISTICS:
        largest = stored_largest(counters=counters)
    own_copy = accumulators + (pid % COPIES).to(tl.int64) * K * D
    blocks = tl.cdiv(N, BLOCK_ROWS)
    for block in range(pid, blocks, tl.num_programs(0)):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        index = tl.load(indices + row, mask=row < N, other=-1)
        if HAS_MASK:
            tl.atomic_add(counters + VALID_SLOT, tl.sum((index >= 0).to(tl.int64)), sem="relaxed")
        squared = write_rows(
            row=row, row_in_range=row < N, index=index, x=x, codebook=codebook, out=out,
            counts=outputs.counts, accumulators=own_copy, largest=largest, row_bits=row_bits, M=M, D=D,
            BLOCK_DIM=BLOCK_DIM, BLOCK_ROWS=BLOCK_ROWS, STATISTICS=STATISTICS, DIFFERENCES=DIFFERENCES,
        )  # fmt: skip
        tl.store(outputs.error + block, squared)
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + WRITE_TICKET, 1, sem="acq_rel")
    if arrived == tl.num_programs(0) - 1:
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, blocks, BLOCK):
            line = start + tl.arange(0, BLOCK)
            total += tl.load(outputs.error + line, mask=line < blocks, other=0.0, cache_modifier=".cg")
        valid_rows = tl.zeros((), tl.int64) + N
        if HAS_MASK:
            valid_rows = tl.load(counters + VALID_SLOT)
        elements = tl.maximum(valid_rows * D, 1).to(tl.float64)
        tl.store(outputs.valid_rows, valid_rows)
        tl.store(outputs.loss, (tl.sum(total) / elements).to(tl.float32) * loss_weight)
        if CONVERT:
            for start in range(0, K * D, BLOCK):
                to_float_sums(
                    accumulators=accumulators, sums=outputs.sums, codebook=codebook,
                    counts=outputs.counts, largest=largest, row_bits=row_bits, size=K * D, start=start,
                    D=D, COPIES=COPIES, BLOCK=BLOCK, DIFFERENCES=DIFFERENCES,
                )  # fmt: skip


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    options: QuantizeOptions,
    quantized: Tensor,
    codebook_copy: Tensor | None,
    packed: Packed | None = None,
) -> QuantizeResult:
    """``base.Backend.vector_quantize``."""
    statistics, differences = options.statistics, options.statistics and options.sum_differences
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    device = x.device
    listed = K if statistics else 0
    indices = torch.empty((B, M), dtype=torch.int64, device=device)
    if N == 0:
        if codebook_copy is not None:
            codebook_copy.copy_(codebook)
        return QuantizeResult(
            quantized,
            indices,
            torch.zeros((), dtype=torch.float32, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
            torch.zeros(listed, dtype=torch.int64, device=device),
            torch.zeros((listed, D), dtype=torch.float32, device=device),
            codebook_copy,
        )
    counts = torch.empty(listed, dtype=torch.int64, device=device)
    if not statistics and few.takes_search(N, codebook):
        counters = few.search_few(x, mask, codebook, options.metric, indices)
        sums = counters[:0]  # none
        if codebook_copy is not None:
            codebook_copy.copy_(codebook)
    else:
        result = search(
            x,
            codebook,
            mask,
            options.metric,
            options.precision,
            indices=indices,
            counts=counts,
            accumulators=accumulators(K, D) if statistics else 0,
            codebook_copy=codebook_copy,
            measure_range=statistics,
            packed=packed,
        )
        if result.plan.exact:
            resolve(x, codebook, result, indices)
        counters, sums = result.counters, result.accumulators
    block_dim, block_rows = common.streaming_tile(D)
    blocks = -(-N // block_rows)
    outputs = Outputs(
        torch.empty((), dtype=torch.float32, device=device),
        torch.empty((), dtype=torch.int64, device=device),
        counts,
        torch.empty((listed, D), dtype=torch.float32, device=device),
        torch.empty(blocks, dtype=torch.float64, device=device),
    )
    convert = statistics and K * D <= CONVERTED_BY_ONE
    write_kernel[(min(WRITERS * common.multiprocessors(device), blocks),)](
        common.make_view(x),
        indices,
        codebook,
        common.make_view(quantized),
        outputs,
        counters,
        sums,
        options.loss_weight,
        row_bits(N, differences),
        N,
        M,
        K,
        D=D,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        HAS_MASK=mask is not None,
        STATISTICS=statistics,
        DIFFERENCES=differences,
        COPIES=copies(K, D),
        CONVERT=convert,
        BLOCK=1024,
        num_warps=4,
        enable_fp_fusion=False,
    )
    if statistics and not convert:
        relative_to = (codebook, counts) if differences else (None, None)
        float_sums(counters, sums, outputs.sums, N, *relative_to)
    return QuantizeResult(
        quantized, indices, outputs.loss, outputs.valid_rows, counts, outputs.sums, codebook_copy
    )
