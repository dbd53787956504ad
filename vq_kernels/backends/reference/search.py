"""The nearest code of every row, exact where that is asked for.

Memory stays bounded: distances exist only for a tile of rows by a tile of codes at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A tile of scores holds at most this many float64 numbers (32 MiB), whatever N and K are.
_TILE_ELEMENTS = 1 << 22
_MAX_TILE_CODES = 1 << 14
_UNIT_ROUNDOFF = 2.0**-53


def nearest_code(x: Tensor, codebook: Tensor, metric: str, precision: str) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])  # [N, D]
    indices = torch.empty(rows.shape[0], dtype=torch.int64, device=x.device)  # [N]
    codes = codebook.double()  # [K, D]
    if codes.shape[0] == 0 or rows.shape[0] == 0:
        return indices.fill_(0).view(x.shape[:-1])
    # Products of other values than float64 are in range.
    search = _search_any_magnitude if torch.float64 in (x.dtype, codebook.dtype) else _search
    search(rows, codes, metric, precision, indices)
    return indices.view(x.shape[:-1])


def _search_any_magnitude(rows: Tensor, codes: Tensor, metric: str, precision: str, indices: Tensor) -> None:
    """:func:`_search` of values that powers of two bring into the range of their products."""
    rows = rows.double()
    if metric == "cosine":  # rows and codes each by a factor of their own
        rows, codes = _in_range(rows, _lengths(rows)), _in_range(codes, _lengths(codes).amax())
        _search(rows, codes, metric, precision, indices)
        return
    usable = codes[codes.isfinite().all(1)]  # [k, D]
    lengths = _lengths(rows)  # [N]
    if usable.shape[0]:  # a code that overflows where these are in range is farther than the shortest one
        lengths = lengths.maximum(_lengths(usable).amin())
    steps = _steps(lengths)  # [N]
    for step in steps.unique():
        of_step = steps == step
        found = indices[of_step]
        _search(_times_steps(rows[of_step], -step), _times_steps(codes, -step), metric, precision, found)
        indices[of_step] = found


def _search(rows: Tensor, codes: Tensor, metric: str, precision: str, indices: Tensor) -> None:
    """indices [N] = the nearest of codes [K, D], float64, of rows [N, D]."""
    tile_codes = min(codes.shape[0], _MAX_TILE_CODES)
    for block, out in zip(
        *(t.split(max(1, _TILE_ELEMENTS // tile_codes)) for t in (rows, indices)), strict=True
    ):
        out.copy_(_nearest_of_block(block.double(), codes, metric, precision, tile_codes))


def _lengths(values: Tensor) -> Tensor:
    """[N, D] -> [N]: the largest finite magnitude of each."""
    return torch.where(values.isfinite(), values.abs(), 0.0).amax(1)


def _steps(lengths: Tensor) -> Tensor:
    """By how many steps of 2^128 float64 values are too large, or too small if negative, for their products.

    Up to 2^400 products and their sums are in range, and from 2^-400 on, so are the errors of products.
    """
    exponent = torch.frexp(lengths).exponent  # 0 of 0
    return exponent.sign() * ((exponent.abs() - 400).clamp(min=0) / 128).ceil().to(torch.int64)


def _times_steps(values: Tensor, steps: Tensor) -> Tensor:
    """values [N, D] * 2^(128 steps), [] or [N, 1]; in two factors, one of which could not be represented."""
    half = steps.div(2, rounding_mode="floor")
    return values * torch.exp2(128.0 * half.double()) * torch.exp2(128.0 * (steps - half).double())


def _in_range(values: Tensor, lengths: Tensor) -> Tensor:
    return _times_steps(values, -_steps(lengths).reshape(-1, 1))


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
    usable = usable & v.isfinite()  # of float64 alone a square can overflow
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
