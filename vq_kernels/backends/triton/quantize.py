"""``vector_quantize``: search, gather, squared error and statistics in four launches.

1. prepare the codebook, copy it where asked to, and zero the counters (``prepare.py``);
2. search (``search.py``), which also finds the largest |x|;
3. resolve the open rows and, for every row, write the code, the squared error and, into integer
   accumulators, the statistics: x is read a second time, while nothing else of size N x D but the
   output exists;
4. convert the sums to float32 and add up the squared error, in an order that N alone fixes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..base import QuantizeOptions, QuantizeResult
from . import common
from .nearest import candidate_scratch, resolve_programs, search
from .rescore import CANDIDATES, TILE, resolve
from .statistics import (
    HEADER,
    TICKET_SLOT,
    VALID_SLOT,
    accumulators,
    add_rows,
    copies,
    row_bits,
    stored_unit_exponent,
    to_float_sums,
)

# Rows whose errors one program of the last kernel adds up.
ERROR_BLOCK = 1 << 15


class Outputs(NamedTuple):
    """Where the writing pass leaves its results besides the quantized rows."""

    indices: Any  # [N] int64
    error: Any  # [N] float32
    counters: Any  # int64: header and accumulators of statistics.py
    counts: Any  # [K] int64


@triton.jit
def write_rows(
    tile, row, row_in_range, index, codebook, out, outputs, sums, exponent, M,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Code, squared error and statistics of rows whose index is known; -1 marks a masked row."""
    valid = tile.valid
    code = tl.where(valid, index, 0).to(tl.int64)
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
            add_rows(
                sums=sums, counts=outputs.counts, exponent=exponent, code=code, valid=valid & finite,
                v=v, d=d, FIRST=start == 0, D=D,
            )  # fmt: skip
    tl.store(outputs.error + row, squared, mask=row_in_range)
    tl.store(outputs.indices + row, index, mask=row_in_range)


@triton.jit
def write_kernel(
    x, mask, codebook, codes, partial, candidates, out, outputs, row_bits, N, M, K, padded_k,
    D: tl.constexpr, PADDED_D: tl.constexpr, plan: tl.constexpr, config: tl.constexpr, bound: tl.constexpr,
    SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, STATISTICS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    counters = outputs.counters
    exponent = tl.zeros((), tl.int32)
    if STATISTICS:
        exponent = stored_unit_exponent(counters=counters, row_bits=row_bits)
    sums = counters + HEADER + (pid % COPIES).to(tl.int64) * K * D
    EXACT: tl.constexpr = plan.exact
    if EXACT or SPLITS > 1:
        count = tl.load(counters).to(tl.int32)
        if SPLITS > 1:
            count = count * 0 + N
        for start in range(pid * TILE, count, tl.num_programs(0) * TILE):
            row, row_in_range, index = resolve(
                x=x, mask=mask, codebook=codebook, codes=codes, partial=partial,
                candidates=candidates + pid * TILE * CANDIDATES, count=count, start=start,
                N=N, M=M, K=K, padded_k=padded_k, D=D, PADDED_D=PADDED_D, plan=plan, config=config,
                bound=bound, SPLITS=SPLITS, INTERPRETED=INTERPRETED,
            )  # fmt: skip
            valid = row_in_range & (index >= 0)
            if mask is not None and SPLITS > 1:
                tl.atomic_add(counters + VALID_SLOT, tl.sum(valid.to(tl.int64)), sem="relaxed")
            write_rows(
                tile=common.row_tile(view=x, row=row, valid=valid, M=M), row=row, row_in_range=row_in_range,
                index=index, codebook=codebook, out=out, outputs=outputs, sums=sums, exponent=exponent, M=M,
                D=D, BLOCK_DIM=BLOCK_DIM, BLOCK_ROWS=TILE, STATISTICS=STATISTICS,
            )  # fmt: skip
    if SPLITS == 1:
        for block in range(pid, tl.cdiv(N, BLOCK_ROWS), tl.num_programs(0)):
            row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS).to(tl.int64)
            index = tl.load(partial.indices + row, mask=row < N, other=-2)
            # Open rows (-2) belong to the loop above, whichever program it runs in.
            if mask is not None:
                counted = ((row < N) & (index != -1)).to(tl.int64)
                tl.atomic_add(counters + VALID_SLOT, tl.sum(counted), sem="relaxed")
            write_rows(
                tile=common.row_tile(view=x, row=row, valid=index >= 0, M=M), row=row,
                row_in_range=index > -2, index=index, codebook=codebook, out=out, outputs=outputs, sums=sums,
                exponent=exponent, M=M, D=D, BLOCK_DIM=BLOCK_DIM, BLOCK_ROWS=BLOCK_ROWS,
                STATISTICS=STATISTICS,
            )  # fmt: skip


@triton.jit
def finish_kernel(
    error, partial, mse, valid_rows, counters, sums, row_bits, N, size, D,
    HAS_MASK: tl.constexpr, STATISTICS: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr,
    ERROR_BLOCK: tl.constexpr, PADDED_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The last program to arrive adds the partial errors, always in the same order."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    if STATISTICS:
        exponent = stored_unit_exponent(counters=counters, row_bits=row_bits)
        for start in range(pid * BLOCK, size, programs * BLOCK):
            to_float_sums(
                accumulators=counters + HEADER, sums=sums, exponent=exponent, size=size, start=start,
                COPIES=COPIES, BLOCK=BLOCK,
            )  # fmt: skip
    blocks = tl.cdiv(N, ERROR_BLOCK)
    for block in range(pid, blocks, programs):
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, ERROR_BLOCK, BLOCK):
            row = block * ERROR_BLOCK + start + tl.arange(0, BLOCK).to(tl.int64)
            total += tl.load(error + row, mask=row < N, other=0.0).to(tl.float64)
        tl.store(partial + block, tl.sum(total))
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + TICKET_SLOT, 1, sem="acq_rel")
    if arrived == programs - 1:
        line = tl.arange(0, PADDED_PROGRAMS)
        total = tl.sum(tl.load(partial + line, mask=line < blocks, other=0.0, cache_modifier=".cg"))
        valid = tl.zeros((), tl.int64) + N
        if HAS_MASK:
            valid = tl.load(counters + VALID_SLOT)
        tl.store(valid_rows, valid)
        elements = tl.maximum(valid * D, 1).to(tl.float64)
        tl.store(mse, (total / elements).to(tl.float32))


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    options: QuantizeOptions,
    quantized: Tensor,
    codebook_copy: Tensor | None,
) -> QuantizeResult:
    """``base.Backend.vector_quantize``."""
    statistics = options.statistics
    B, M, D = x.shape
    N, K = B * M, codebook.shape[0]
    device = x.device
    listed = K if statistics else 0
    if N == 0:
        if codebook_copy is not None:
            codebook_copy.copy_(codebook)
        return QuantizeResult(
            quantized,
            torch.empty((B, M), dtype=torch.int64, device=device),
            torch.zeros((), dtype=torch.float32, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
            torch.zeros(listed, dtype=torch.int64, device=device),
            torch.zeros((listed, D), dtype=torch.float32, device=device),
            codebook_copy,
        )
    number_of_copies = copies(K, D)
    header = int(HEADER.value)
    counters = torch.empty(accumulators(K, D) if statistics else header, dtype=torch.int64, device=device)
    counts = torch.empty(listed, dtype=torch.int64, device=device)
    result = search(
        x,
        codebook,
        mask,
        options.metric,
        options.precision,
        counters=counters,
        counts=counts,
        codebook_copy=codebook_copy,
        measure_range=statistics,
    )
    indices = torch.empty((B, M), dtype=torch.int64, device=device)
    error = torch.empty(N, dtype=torch.float32, device=device)
    block_dim, block_rows = common.streaming_tile(D)
    programs = max(resolve_programs(N, device), min(4 * common.multiprocessors(device), -(-N // block_rows)))
    write_kernel[(programs,)](
        x=common.make_view(x),
        mask=mask,
        codebook=codebook,
        candidates=candidate_scratch(programs, device),
        out=common.make_view(quantized),
        outputs=Outputs(indices, error, counters, counts),
        row_bits=row_bits(N),
        N=N,
        M=M,
        K=K,
        D=D,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        STATISTICS=statistics,
        COPIES=number_of_copies,
        num_warps=4,
        enable_fp_fusion=False,
        **result.resolve_arguments(),
    )
    blocks = -(-N // ERROR_BLOCK)
    sums = torch.empty((listed, D), dtype=torch.float32, device=device)
    mse = torch.empty((), dtype=torch.float32, device=device)
    valid_rows = torch.empty((), dtype=torch.int64, device=device)
    programs = max(1, min(4 * common.multiprocessors(device), max(blocks, -(-listed * D // 1024))))
    finish_kernel[(programs,)](
        error,
        torch.empty(blocks, dtype=torch.float64, device=device),
        mse,
        valid_rows,
        counters,
        sums,
        row_bits(N),
        N,
        listed * D,
        D,
        HAS_MASK=mask is not None,
        STATISTICS=statistics,
        COPIES=number_of_copies,
        BLOCK=1024,
        ERROR_BLOCK=ERROR_BLOCK,
        PADDED_PROGRAMS=triton.next_power_of_2(blocks),
        num_warps=4,
        enable_fp_fusion=False,
    )
    loss = mse if options.loss_weight == 1.0 else mse * options.loss_weight
    return QuantizeResult(quantized, indices, loss, valid_rows, counts, sums, codebook_copy)
