"""The definition of every operation in plain PyTorch: written to be read, used by tests and as fallback.

Memory stays bounded: distances exist only for a tile of rows by a tile of codes at a time. The
contract is in ``base.py``; this file imports torch and nothing of ours, so that it can be read,
and trusted, alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

name = "reference"

# A tile of scores holds at most this many float64 numbers (32 MiB), whatever N and K are.
_TILE_ELEMENTS = 1 << 22
_MAX_TILE_CODES = 1 << 14
_UNIT_ROUNDOFF = 2.0**-53


def unavailable_reason() -> str | None:
    return None


def unsupported_reason(x: Tensor, codebook: Tensor | None = None) -> str | None:
    return None


def accumulator_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# --- nearest code ---------------------------------------------------------------------------------


def nearest_code(x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])  # [N, D]
    indices = torch.empty(rows.shape[0], dtype=torch.int64, device=x.device)  # [N]
    codes = codebook.double()  # [K, D]
    if codes.shape[0] == 0 or rows.shape[0] == 0:
        return indices.fill_(0).view(x.shape[:-1])
    tile_codes = min(codes.shape[0], _MAX_TILE_CODES)
    for block, out in zip(
        *(t.split(max(1, _TILE_ELEMENTS // tile_codes)) for t in (rows, indices)), strict=True
    ):
        out.copy_(_nearest_of_block(block.double(), codes, metric, precision, tile_codes))
    return indices.view(x.shape[:-1])


def _nearest_of_block(x: Tensor, codes: Tensor, metric: str, precision: str, tile_codes: int) -> Tensor:
    """A float64 matrix product first; rows whose two best scores its error could swap are scored exactly."""
    n, dim = x.shape
    finite = x.isfinite().all(1)  # [n]
    x = torch.where(finite[:, None], x, 0.0)  # [n, D]
    best = x.new_full((n,), torch.inf)  # [n]
    second = x.new_full((n,), torch.inf)  # [n]
    index = torch.zeros(n, dtype=torch.int64, device=x.device)  # [n]
    for start in range(0, codes.shape[0], tile_codes):
        tile = codes[start : start + tile_codes]  # [k, D]
        usable = tile.isfinite().all(1)  # [k]
        tile = torch.where(usable[:, None], tile, 0.0)  # [k, D]
        score = -(x @ tile.T)  # [n, k]
        if metric == "l2":
            score += 0.5 * tile.square().sum(1)  # [n, k]
        score.nan_to_num_(nan=torch.inf).masked_fill_(~usable, torch.inf)  # [n, k]
        value, j = score.min(1)  # [n], [n]; any of equal minima: equality is ambiguous below
        score.scatter_(1, j[:, None], torch.inf)
        runner_up = score.amin(1)  # [n]
        second = torch.minimum(second, torch.maximum(runner_up, torch.minimum(value, second)))  # [n]
        second = torch.minimum(torch.maximum(best, value), second)  # [n]
        index = torch.where(value < best, j + start, index)  # [n]
        best = torch.minimum(best, value)  # [n]
    if precision != "exact":
        return torch.where(finite, index, 0)
    # |computed - real| <= (D + 4) u (|x| |e| + |e|^2 / 2) for any order of summation (Higham 2002,
    # section 3.1, with |sum x_d e_d| terms bounded by Cauchy-Schwarz); doubled for the two scores
    # compared, and doubled again for the rounding of the bound itself.
    usable_codes = torch.where(codes.isfinite().all(1)[:, None], codes, 0.0)  # [K, D]
    largest = usable_codes.norm(dim=1).amax()  # []
    bound = 4 * (dim + 4) * _UNIT_ROUNDOFF * (x.norm(dim=1) * largest + 0.5 * largest.square())  # [n]
    ambiguous = finite & ~(second - best > bound) & torch.isfinite(second)  # [n]
    # Overflow (only float64 input can) leaves nothing certain: inf - inf is NaN and so ambiguous.
    rows = ambiguous.nonzero()[:, 0]  # [m]
    for part in rows.split(max(1, _TILE_ELEMENTS // (8 * tile_codes))):
        index[part] = _exact_nearest(x[part], codes, metric, tile_codes)
    return torch.where(finite, index, 0)


def _exact_nearest(x: Tensor, codes: Tensor, metric: str, tile_codes: int) -> Tensor:
    """Argmin of the exact score of ``base.py``, lowest index on ties. x [m, D], codes [K, D], float64."""
    best_v = x.new_full((x.shape[0],), torch.inf)  # [m]
    best_r = x.new_full((x.shape[0],), torch.inf)  # [m]
    index = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)  # [m]
    for start in range(0, codes.shape[0], tile_codes):
        v, r = exact_scores(x, codes[start : start + tile_codes], metric)  # [m, k], [m, k]
        tile_v = v.amin(1)  # [m]
        r = torch.where(v == tile_v[:, None], r, torch.inf)  # [m, k]
        tile_r = r.amin(1)  # [m]
        is_best = (v == tile_v[:, None]) & (r == tile_r[:, None])  # [m, k]
        j = is_best.to(torch.uint8).argmax(1) + start  # [m], the first of the equal ones
        better = (tile_v < best_v) | ((tile_v == best_v) & (tile_r < best_r))  # [m]
        best_v, best_r = torch.where(better, tile_v, best_v), torch.where(better, tile_r, best_r)
        index = torch.where(better, j, index)  # [m]
    return index


def exact_scores(x: Tensor, codes: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Unevaluated sums v + r of the score of each row of x [m, D] with each code [k, D], both float64.

    Non-finite codes score infinity. For float64 values that are not float32 values the products
    are split (Dekker 1971), so that they too are summed without error.
    """
    usable = codes.isfinite().all(1)  # [k]
    codes = torch.where(usable[:, None], codes, 0.0)  # [k, D]
    hi, lo = codes.new_zeros(codes.shape[0]), codes.new_zeros(codes.shape[0])  # [k]
    if metric == "l2":
        for e in codes.unbind(1):  # [k]
            product, error = _two_product(e, e)  # [k]
            hi, lo = _accumulate(hi, lo, 0.5 * product)
            lo = lo + 0.5 * error
    hi, lo = hi.expand(x.shape[0], -1), lo.expand(x.shape[0], -1)  # [m, k]
    for x_d, e_d in zip(x.unbind(1), codes.unbind(1), strict=True):
        product, error = _two_product(x_d[:, None], e_d[None, :])  # [m, k]
        hi, lo = _accumulate(hi, lo, -product)
        lo = lo - error
    v = hi + lo
    b = v - hi
    r = (hi - (v - b)) + (lo - b)
    return v.masked_fill(~usable, torch.inf), r.masked_fill(~usable, torch.inf)


def _accumulate(hi: Tensor, lo: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Knuth's TwoSum: hi + t = s + error exactly."""
    s = hi + t
    b = s - hi
    return s, lo + ((hi - (s - b)) + (t - b))


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a * b = product + error exactly; the error is 0 where both hold float32 values."""
    product = a * b
    a_high, b_high = _upper_half(a), _upper_half(b)
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _upper_half(a: Tensor) -> Tensor:
    """The upper 26 bits of a float64 (Veltkamp's splitting)."""
    scaled = 134217729.0 * a  # 2^27 + 1
    return scaled - (scaled - a)


# --- gather and statistics ------------------------------------------------------------------------


def gather_codes(codebook: Tensor, indices: Tensor, out: Tensor) -> None:
    out.copy_(codebook[indices])


def code_statistics(
    x: Tensor, indices: Tensor, codebook_size: int, skip_nonfinite: bool
) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1]).to(accumulator_dtype(x))  # [N, D]
    slots = indices.reshape(-1)  # [N]
    keep = slots >= 0  # [N]
    if skip_nonfinite:
        keep = keep & rows.isfinite().all(1)  # [N]
    # Rows left out go to one slot past the codes, which is dropped at the end.
    slots = torch.where(keep, slots, codebook_size)  # [N]
    counts = torch.bincount(slots, minlength=codebook_size + 1)  # [K + 1]
    # Sorted by code, each code's rows are one segment, summed in the order of the batch in float64.
    ordered = rows[slots.argsort(stable=True)].double()  # [N, D]
    sums = torch.segment_reduce(ordered, "sum", lengths=counts, axis=0, initial=0.0)  # [K + 1, D]
    return counts[:codebook_size].contiguous(), sums[:codebook_size].to(rows.dtype).contiguous()


def ema_update_(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    normalize: bool,
) -> None:
    changed = counts.sum() > 0  # []
    n = cluster_size.lerp(counts.to(cluster_size.dtype), 1 - decay)  # [K]
    m = embed_avg.lerp(sums.to(embed_avg.dtype), 1 - decay)  # [K, D]
    total = n.sum()  # []
    smoothed = (n + eps) / (total + n.shape[0] * eps) * total  # [K]
    codes = m / smoothed[:, None]  # [K, D]
    if normalize:
        codes = codes / codes.norm(dim=1, keepdim=True).clamp(min=1e-6)  # [K, D]
    cluster_size.copy_(torch.where(changed, n, cluster_size))
    embed_avg.copy_(torch.where(changed, m, embed_avg))
    codebook.copy_(torch.where(changed, codes.to(codebook.dtype), codebook))


# --- the fused step and its backward --------------------------------------------------------------


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    mask: Tensor | None,
    metric: str,
    precision: str,
    out: Tensor,
    statistics: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if kept is not None:
        kept.copy_(codebook)
    compute = accumulator_dtype(x)
    indices = nearest_code(x, codebook, metric, precision)  # [B, M]
    codes = codebook[indices].to(compute)  # [B, M, D]
    codes = torch.where(x.isfinite().all(-1, keepdim=True), codes, torch.nan)  # [B, M, D]
    squared = (codes - x.to(compute)).double().square().sum(-1)  # [B, M]
    valid_rows = torch.tensor(indices.numel(), device=x.device)  # []
    if mask is not None:
        codes = torch.where(mask[..., None], codes, 0.0)  # [B, M, D]
        squared = torch.where(mask, squared, 0.0)  # [B, M]
        indices = torch.where(mask, indices, -1)  # [B, M]
        valid_rows = mask.sum()  # []
    out.copy_(codes)
    mse = (squared.sum() / (valid_rows * x.shape[-1]).clamp(min=1)).to(compute)  # []
    size = codebook.shape[0] if statistics else 0
    if statistics:
        counts, sums = code_statistics(x, indices, size, skip_nonfinite=True)
    else:
        counts, sums = indices.new_empty(0), x.new_empty((0, x.shape[-1]), dtype=compute)
    return indices, mse, valid_rows, counts, sums


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
    compute = accumulator_dtype(x)
    x = x.to(compute)  # [B, M, D]
    codes = codebook[indices.clamp(min=0)].to(compute)  # [B, M, D]
    result = torch.zeros_like(x)  # [B, M, D]
    if grad_quantized is not None:
        g = grad_quantized.to(compute)  # [B, M, D]
        result = g if gradient == "straight_through" else _rotate_back(g, x, codes)
    if grad_loss is not None:
        pull = grad_loss.to(compute) * scale / valid_rows.clamp(min=1)  # []
        result = result + pull * (x - codes)  # [B, M, D]
    out.copy_(torch.where((indices >= 0)[..., None], result, 0.0))


def _rotate_back(g: Tensor, x: Tensor, codes: Tensor) -> Tensor:
    """Transpose of the rotation that takes x/|x| to e/|e|, rescaled by |e|/|x| (arXiv:2410.06424, 4.2)."""
    x_norm = x.norm(dim=-1, keepdim=True).clamp(min=1e-6)  # [B, M, 1]
    e_norm = codes.norm(dim=-1, keepdim=True)  # [B, M, 1]
    u = x / x_norm  # [B, M, D]
    q = codes / e_norm.clamp(min=1e-6)  # [B, M, D]
    w = u + q  # [B, M, D]
    w = w / w.norm(dim=-1, keepdim=True).clamp(min=1e-6)  # [B, M, D]
    through_w = 2 * (g * w).sum(-1, keepdim=True) * w  # [B, M, D]
    through_u = 2 * (g * q).sum(-1, keepdim=True) * u  # [B, M, D]
    return e_norm / x_norm * (g - through_w + through_u)
