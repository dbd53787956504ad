"""The building blocks of PixelSNAIL (Chen et al., 2018), and the caches that run them one code at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.layers.causal import LeftCache, LeftConv, RowsCache, RowsConv
from models.layers.dropout import Dropout
from models.layers.gated import gate_biases
from models.priors.attention import KeyValueCache, attend


class CausalConv(nn.Module):
    """k x k convolution over the k - 1 rows above and the same row up to its own position."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        above = RowsConv(channels, out_channels, kernel_size - 1, kernel_size, strictly_above=True)
        self.above = weight_norm(above)
        self.left = weight_norm(LeftConv(channels, out_channels, kernel_size // 2 + 1))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.above(x) + self.left(x)
        return total


class CausalConvCache:
    """Runs a :class:`CausalConv` position by position."""

    def __init__(self, conv: CausalConv, batch: int, width: int) -> None:
        self.rows = RowsCache(conv.above, batch, width)
        self.left = LeftCache(conv.left, batch, width)
        self.from_above: Tensor

    def start_row(self, context: list[Tensor]) -> None:
        """Everything above is known now. ``context``, ``[B, C', 1, 1 or W]`` each, is added to this row."""
        self.from_above = self.rows.push(self.left.row)
        for bias in context:
            self.from_above = self.from_above + bias[:, :, 0].transpose(1, 2)

    def step(self, column: int, x: Tensor) -> Tensor:
        return self.left.step(column, x, self.from_above[:, column])


class GatedResidual(nn.Module):
    """x + GLU(conv2(ELU(conv1(ELU(x)))) + context) on ``[B, C, H, W]``, with causal convolutions."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel_size: int,
        dropout: float,
        num_classes: int | None,
        upper_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv(channels, hidden, kernel_size)
        self.conv2 = CausalConv(hidden, 2 * channels, kernel_size)
        self.dropout = Dropout(dropout)
        self.label = None if num_classes is None else nn.Embedding(num_classes, 2 * channels)
        self.upper = None
        if upper_channels:
            self.upper = weight_norm(nn.Conv2d(upper_channels, 2 * channels, 1, bias=False))

    def context(self, labels: Tensor | None, upper: Tensor | None) -> list[Tensor]:
        """What the label and the upper features add before the gate, ``[B, 2 C, 1 or H, 1 or W]`` each."""
        return gate_biases(self.label, labels, self.upper, upper)

    def forward(self, x: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        hidden = self.dropout(F.elu(self.conv1(F.elu(x))))
        gated = sum(self.context(labels, upper), start=self.conv2(hidden))
        return x + F.glu(gated, dim=1)


class GatedResidualCache:
    """Runs a :class:`GatedResidual` position by position."""

    def __init__(self, block: GatedResidual, batch: int, width: int) -> None:
        self.block = block
        self.conv1 = CausalConvCache(block.conv1, batch, width)
        self.conv2 = CausalConvCache(block.conv2, batch, width)

    def start_row(self, labels: Tensor | None, upper: Tensor | None) -> None:
        """``upper``: the features of this row, ``[B, C, 1, W]``."""
        self.conv1.start_row([])
        self.conv2.start_row(self.block.context(labels, upper))

    def step(self, column: int, x: Tensor) -> Tensor:
        """``[B, C]`` at ``column``."""
        hidden = F.elu(self.conv1.step(column, F.elu(x)))
        return x + F.glu(self.conv2.step(column, hidden), dim=-1)


class GatedPointwise(nn.Module):
    """The same with 1 x 1 convolutions, on sequences ``[B, N, C]``, with an optional second input."""

    def __init__(self, channels: int, hidden: int, dropout: float, auxiliary: int = 0) -> None:
        super().__init__()
        self.linear1 = weight_norm(nn.Linear(channels, hidden))
        self.auxiliary = weight_norm(nn.Linear(auxiliary, hidden)) if auxiliary else None
        self.linear2 = weight_norm(nn.Linear(hidden, 2 * channels))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, auxiliary: Tensor | None = None) -> Tensor:
        hidden = self.linear1(F.elu(x))
        if self.auxiliary is not None and auxiliary is not None:
            hidden = hidden + self.auxiliary(F.elu(auxiliary))
        return x + F.glu(self.linear2(self.dropout(F.elu(hidden))), dim=-1)


class CausalAttention(nn.Module):
    """The attention half of a block, on sequences: whole, or one position with a key/value cache.

    Position t attends to positions up to t, itself included: its features know only codes before t.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.key_block = GatedPointwise(2 * channels + 2, channels, dropout)
        self.query_block = GatedPointwise(channels + 2, channels, dropout)
        self.query = weight_norm(nn.Linear(channels + 2, channels // 2))
        self.key = weight_norm(nn.Linear(2 * channels + 2, channels // 2))
        self.value = weight_norm(nn.Linear(2 * channels + 2, channels // 2))
        self.out_block = GatedPointwise(channels, channels, dropout, auxiliary=channels // 2)

    def forward(
        self, block_input: Tensor, x: Tensor, background: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        source = self.key_block(torch.cat([block_input, x, background], dim=-1))
        attended = attend(
            self.query(self.query_block(torch.cat([x, background], dim=-1))),
            self.key(source),
            self.value(source),
            heads=self.heads,
            causal=True,
            dropout=self.dropout if self.training else 0.0,
            cache=cache,
        )
        out: Tensor = self.out_block(x, attended)
        return out


class PositionMix(nn.Module):
    """What a block ends with where it has no attention: the background mixed in by a 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = weight_norm(nn.Linear(channels + 2, channels))

    def forward(
        self, block_input: Tensor, x: Tensor, background: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        out: Tensor = self.linear(torch.cat([x, background], dim=-1))
        return out
