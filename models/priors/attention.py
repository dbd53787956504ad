"""Multi-head attention over a sequence, whole or one position at a time with a key/value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.dropout import drop_keys


class KeyValueCache:
    """The keys and values of the positions seen so far, with room for ``capacity`` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._stored: tuple[Tensor, Tensor] | None = None  # [B, heads, capacity, d] each, made at the first

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds ``[B, heads, n, d]`` and gives views of all keys and values so far."""
        if self._stored is None:
            batch, heads, _, width = key.shape
            keys, values = key.new_empty(2, batch, heads, self.capacity, width)
            self._stored = keys, values
        keys, values = self._stored
        start, added = self.length, key.shape[2]
        self.length = start + added
        keys.narrow(2, start, added).copy_(key)
        values.narrow(2, start, added).copy_(value)
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    causal: bool,
    dropout: float = 0.0,
    cache: KeyValueCache | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head, ``[B, N, C]`` to ``[B, N, C]``, never storing N x N.

    ``causal``: position t attends to positions up to and including t. With a ``cache`` the inputs are the one
    next position, N = 1, which attends to all that the cache holds and to itself. ``dropout``: probability
    with which a head leaves a position out for all queries of a map, see
    :func:`models.layers.dropout.drop_keys`.
    """
    q, k, v = (
        x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2) for x in (query, key, value)
    )  # [B, h, N, d]
    if cache is not None:
        k, v = cache.append(k, v)
        causal = False  # nothing later is in the cache
    if dropout:
        v = drop_keys(v, dropout)
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        # torch's backward pass in bfloat16 takes four to five times as long as that in float32 where a map
        # has some ten to a hundred codes, and as long at a thousand.
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
        attended = attended.to(q.dtype)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def token_rows(map_features: Tensor) -> Tensor:
    """``[B, C, *S]`` as a sequence ``[B, N, C]`` in raster order."""
    return map_features.flatten(2).transpose(1, 2)


def token_map(tokens: Tensor, sizes: torch.Size | tuple[int, ...]) -> Tensor:
    """The inverse: ``[B, N, C]`` as ``[B, C, *sizes]``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *sizes)


def upsample_to(features: Tensor, sizes: torch.Size | tuple[int, ...]) -> Tensor:
    """``[B, C, *U]`` to ``[B, C, *sizes]`` by nearest neighbour: a cell copies the coarse one above it."""
    return F.interpolate(features, size=tuple(sizes), mode="nearest-exact")
