"""Codes that equal an earlier code: excluded, since they can never win.

Of equal codes the lowest index wins, so the others may be left out of every search: nothing changes
in the result, and a codebook of equal codes (zeros before k-means, a collapsed one) leaves no more
rows open than one of different codes. A code's 64-bit hash finds the first code that could equal it;
the two are then compared number by number, so that a collision can only leave a duplicate in.

Every program of ``prepare.py`` hashes all of a small codebook anew. A large one takes a launch of its
own: every program enters its codes into two hash tables, of which each keeps the lowest index that
falls on an entry, and the last program to arrive looks all codes up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import common
from .codes import Prepared, reduce_extremes
from .common import EXCLUDE_TICKET, EXCLUDED
from .launch import Kernel

# Elements of the codebook up to which every program hashes all of it.
SMALL = 1 << 15

# Entries of a table for each code: one code in eight meets another in one table, one in 64 in both.
SPARSITY = 8
NOT_ENTERED = tl.constexpr(2147483647)

# Multipliers of the hash: any odd numbers without a pattern.
_MIX_A = tl.constexpr(0x1E3779B97F4A7C15)
_MIX_B = tl.constexpr(0x3F58476D1CE4E5B9)
_SHIFT = tl.constexpr(0x2545F4914F6CDD1D)


class HashTables(NamedTuple):
    """Scratch of a large codebook."""

    hashes: Any  # [K] int64
    entries: Any  # [2, size] int32
    size: Any  # a power of two


def is_large(codebook: Tensor) -> bool:
    """Whether a launch more pays for this codebook."""
    return codebook.numel() > SMALL


def make_tables(codebook: Tensor) -> HashTables | None:
    """The tables of a large codebook, still empty memory; None for a small one."""
    K, _ = codebook.shape
    if not is_large(codebook):
        return None
    size = common.next_power_of_2(SPARSITY * K)
    device = codebook.device
    hashes = torch.empty(K, dtype=torch.int64, device=device)
    return HashTables(hashes, torch.empty(2 * size, dtype=torch.int32, device=device), size)


@triton.jit
def hash_codes(codebook, code, valid, D: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """64-bit hashes of codes, the same for both zeros: ``[codes]`` int64."""
    code = code.to(tl.int64)
    total = code * 0
    for start in range(0, D, BLOCK_DIM):
        d = start + tl.arange(0, BLOCK_DIM)
        e = common.load_codes(codebook=codebook, code=code, valid=valid, d=d, D=D)
        bits = tl.where(e == 0, 0.0, e).to(tl.int32, bitcast=True).to(tl.int64)
        weight = (d.to(tl.int64) + 1) * _MIX_A
        weight = ((weight ^ (weight >> 29)) * _MIX_B) | 1
        total += tl.sum((bits + _SHIFT) * (weight ^ ((weight >> 32) << 1))[None, :], 1)
    return total ^ (total >> 31)


@triton.jit
def are_equal(codebook, code_a, code_b, valid, D: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """Whether pairs of codes are valid and equal, number by number."""
    code_a = code_a.to(tl.int64)
    code_b = code_b.to(tl.int64)
    different = tl.where(valid, 0, 1)
    for start in range(0, D, BLOCK_DIM):
        d = start + tl.arange(0, BLOCK_DIM)
        a = common.load_codes(codebook=codebook, code=code_a, valid=valid, d=d, D=D)
        b = common.load_codes(codebook=codebook, code=code_b, valid=valid, d=d, D=D)
        different = tl.maximum(different, tl.max(tl.where(a == b, 0, 1), 1))
    return different == 0


@triton.jit
def equals_an_earlier_code(codebook, code, K, D: tl.constexpr, BLOCK_DIM: tl.constexpr, CHUNK: tl.constexpr):
    """Whether codes of a small codebook equal one with a lower index."""
    valid = code < K
    own = hash_codes(codebook=codebook, code=code, valid=valid, D=D, BLOCK_DIM=BLOCK_DIM)
    first = code
    for start in range(0, tl.minimum(tl.max(code), K), CHUNK):
        other = start + tl.arange(0, CHUNK)
        hashes = hash_codes(codebook=codebook, code=other, valid=other < K, D=D, BLOCK_DIM=BLOCK_DIM)
        same = (own[:, None] == hashes[None, :]) & (other < K)[None, :]
        first = tl.minimum(first, tl.min(tl.where(same, other[None, :], NOT_ENTERED), 1))
    is_candidate = valid & (first < code)
    return are_equal(
        codebook=codebook, code_a=code, code_b=first, valid=is_candidate, D=D, BLOCK_DIM=BLOCK_DIM
    )


@triton.jit
def slots(hashes, size):
    """Entries of a hash in the first and in the second table."""
    low = (hashes & 0x7FFFFFFF).to(tl.int32)
    high = ((hashes >> 32) & 0x7FFFFFFF).to(tl.int32)
    return low & (size - 1), size + (high & (size - 1))


@triton.jit
def first_of_equal_hash(tables, code, K):
    """The lowest code of equal hash that the tables know, at most ``code`` itself."""
    valid = code < K
    hashes = tl.load(tables.hashes + code, mask=valid, other=0)
    slot_a, slot_b = slots(hashes=hashes, size=tables.size)
    # Entered by other programs: not from this multiprocessor's own cache.
    first_a = tl.load(tables.entries + slot_a, mask=valid, other=0, cache_modifier=".cg")
    first_b = tl.load(tables.entries + slot_b, mask=valid, other=0, cache_modifier=".cg")
    same_a = tl.load(tables.hashes + first_a, mask=valid, other=0) == hashes
    same_b = tl.load(tables.hashes + first_b, mask=valid, other=0) == hashes
    first = tl.where(same_a & valid, first_a, code)
    return tl.where(same_b & valid, tl.minimum(first, first_b), first)


@Kernel
@triton.jit
def exclude_kernel(
    codebook, codes, reduced, tables, counters, K, programs,
    D: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK: tl.constexpr, COMPARED: tl.constexpr,
):  # fmt: skip
    """Give all duplicates of a large codebook a bias that never wins; reduce the table of extremes."""
    if tl.program_id(0) == 0:
        reduce_extremes(table=codes.extremes, reduced=reduced, programs=programs, BLOCK=BLOCK)
    for start in range(tl.program_id(0) * BLOCK, K, tl.num_programs(0) * BLOCK):
        code = start + tl.arange(0, BLOCK)
        hashes = tl.load(tables.hashes + code, mask=code < K, other=0)
        slot_a, slot_b = slots(hashes=hashes, size=tables.size)
        tl.atomic_min(tables.entries + slot_a, code, mask=code < K, sem="relaxed")
        tl.atomic_min(tables.entries + slot_b, code, mask=code < K, sem="relaxed")
    tl.debug_barrier()
    arrived = tl.atomic_add(counters + EXCLUDE_TICKET, 1, sem="acq_rel")
    if arrived == tl.num_programs(0) - 1:
        for start in range(0, K, BLOCK):
            code = start + tl.arange(0, BLOCK)
            is_candidate = first_of_equal_hash(tables=tables, code=code, K=K) < code
            if tl.max(is_candidate.to(tl.int32)) > 0:
                for compared in range(start, tl.minimum(start + BLOCK, K), COMPARED):
                    code_a = compared + tl.arange(0, COMPARED)
                    code_b = first_of_equal_hash(tables=tables, code=code_a, K=K)
                    is_duplicate = are_equal(
                        codebook=codebook, code_a=code_a, code_b=code_b, valid=code_b < code_a,
                        D=D, BLOCK_DIM=BLOCK_DIM,
                    )  # fmt: skip
                    excluded = tl.full((COMPARED,), EXCLUDED, tl.float32)
                    tl.store(codes.bias + code_a, excluded, mask=is_duplicate)


def exclude_duplicates(codebook: Tensor, codes: Prepared, tables: HashTables, counters: Tensor) -> Prepared:
    """Launch on the current stream; the prepared codes, of whose extremes one line is left."""
    K, D = codebook.shape
    reduced = codes.extremes.new_empty(1, codes.extremes.shape[1])
    block = 1024
    exclude_kernel[(min(common.multiprocessors(codebook.device), -(-K // block)),)](
        codebook,
        codes,
        reduced,
        tables,
        counters,
        K,
        codes.extremes.shape[0],
        D=D,
        BLOCK_DIM=min(64, max(16, common.next_power_of_2(D))),
        BLOCK=block,
        COMPARED=64,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return codes._replace(extremes=reduced)
