"""The gated layers of a PixelCNN: what each position gets from those before it, and the same step by step.

Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders" (arXiv:1606.05328).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from models.layers.causal import LeftCache, LeftConv, RowsCache, RowsConv, shift_down, shift_right
from models.layers.dropout import Dropout


def gate_biases(
    label: nn.Module | None, labels: Tensor | None, upper: nn.Module | None, features: Tensor | None
) -> list[Tensor]:
    """What labels ``[B]`` and features of a level above add to gates: ``[B, C, 1 or H, 1 or W]`` each."""
    biases: list[Tensor] = []
    if label is not None and labels is not None:
        biases.append(label(labels)[:, :, None, None])
    if upper is not None and features is not None:
        biases.append(upper(features))
    return biases


class GatedLayer(nn.Module):
    """One layer of both stacks.

    The vertical stack v sees all columns of the rows above, the horizontal stack h what lies to the left, and
    v feeds into h at every layer: together they leave no blind spot. Both inputs are shifted already, v by a
    row and h by a column, so every layer may look at its own position. The residual connection of v is not in
    the paper; without it the signal of a deep vertical stack dies away.
    """

    def __init__(
        self, channels: int, kernel_size: int, num_classes: int | None, upper_channels: int, dropout: float
    ) -> None:
        super().__init__()
        reach = kernel_size // 2 + 1
        self.vertical = RowsConv(channels, 2 * channels, reach, kernel_size)
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = LeftConv(channels, 2 * channels, reach)
        self.residual_and_skip = nn.Linear(channels, 2 * channels)
        self.label = None if num_classes is None else nn.Embedding(num_classes, 4 * channels)
        self.upper = nn.Conv2d(upper_channels, 4 * channels, 1) if upper_channels else None
        self.dropout = Dropout(dropout)

    def forward(
        self, v: Tensor, h: Tensor, labels: Tensor | None, upper: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """v, h ``[B, C, H, W]``; gives the next v and h, and this layer's share of the output."""
        v, across = self.vertical_step(v, self.vertical(v), self.context(labels, upper))
        y = self.dropout(gate(self.horizontal(h) + across, dim=1))
        residual, skip = self.output(y.movedim(1, -1))
        return v, h + residual.movedim(-1, 1), skip.movedim(-1, 1)

    def vertical_step(self, v: Tensor, rows: Tensor, context: list[Tensor]) -> tuple[Tensor, Tensor]:
        """From the vertical convolution's output ``rows``: the next v, and what the gates of h get."""
        across = self.across(rows)
        for bias in context:
            to_rows, to_across = bias.chunk(2, dim=1)
            rows, across = rows + to_rows, across + to_across
        return v + gate(rows, dim=1), across

    def output(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Residual and skip, ``[..., C]`` each, of gated features ``[..., C]``."""
        residual, skip = self.residual_and_skip(y).chunk(2, dim=-1)
        return residual, skip

    def context(self, labels: Tensor | None, upper: Tensor | None) -> list[Tensor]:
        """The biases ``[B, 4 C, 1 or H, 1 or W]`` that the label and the upper features add to the gates."""
        return gate_biases(self.label, labels, self.upper, upper)


class GatedLayers(nn.ModuleList):
    """``layers`` gated layers whose shares are added up: features of a map to those of what comes before.

    The first layer has a kernel of its own size. With r = ``first_kernel_size // 2 + (layers - 1) *
    (kernel_size // 2)`` each position sees r + 1 positions to its left, r + 1 rows up, and in these at least
    r to either side.

    num_classes, upper_channels: of a label ``[B]`` and of features ``[B, upper_channels, H, W]``, known for
    the whole map, on which every gate depends; None and 0 for none.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        *,
        first_kernel_size: int,
        kernel_size: int,
        num_classes: int | None = None,
        upper_channels: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            GatedLayer(
                channels, kernel_size if layer else first_kernel_size, num_classes, upper_channels, dropout
            )
            for layer in range(layers)
        )
        self.channels = channels

    def __iter__(self) -> Iterator[GatedLayer]:
        return cast("Iterator[GatedLayer]", super().__iter__())

    def forward(self, x: Tensor, labels: Tensor | None = None, upper: Tensor | None = None) -> Tensor:
        """Features ``[B, C, H, W]`` to features ``[B, C, H, W]``: at each position, of those before it."""
        v, h = shift_down(x), shift_right(x)
        skips = torch.zeros_like(h)
        for layer in self:
            v, h, skip = layer(v, h, labels, upper)
            skips = skips + skip
        return skips


class GatedSteps:
    """:class:`GatedLayers` one position at a time: the vertical stack once a row, the horizontal one each.

    For a map of ``batch`` rows of ``width`` positions; labels and upper as the layers take them.
    """

    def __init__(
        self, layers: GatedLayers, batch: int, width: int, labels: Tensor | None, upper: Tensor | None
    ) -> None:
        self.width = width
        self.labels = labels
        self.upper = upper
        self.position = 0
        self.layers = list(layers)
        self.rows = [RowsCache(layer.vertical, batch, width) for layer in self.layers]
        self.left = [LeftCache(layer.horizontal, batch, width) for layer in self.layers]
        self.across: list[Tensor] = []
        weight = self.layers[0].across.weight
        self.row = weight.new_zeros(batch, width, layers.channels)  # features of this row so far
        self.nothing = torch.zeros_like(self.row[:, 0])

    def __call__(self, previous: Tensor | None) -> Tensor:
        """Features ``[B, C]`` of the next position, given those of the one just passed, None at first."""
        row, column = divmod(self.position, self.width)
        self.position += 1
        h = skips = self.nothing
        if previous is not None:
            h = previous
            self.row[:, column - 1] = h  # column 0 ends the row above: -1 is its last
        if column == 0:
            self._start_row(row)
            h = self.nothing
        for layer, left, across in zip(self.layers, self.left, self.across, strict=True):
            y = gate(left.step(column, h, across[:, column]), dim=-1)
            residual, skip = layer.output(y)
            h, skips = h + residual, skips + skip
        return skips

    def _start_row(self, row: int) -> None:
        """The vertical stack at ``row``, whose first input is the row above (zero for the first)."""
        v = self.row.movedim(-1, 1)[:, :, None]  # [B, C, 1, W]
        upper = None if self.upper is None else self.upper[:, :, row : row + 1]
        self.across = []
        for layer, rows in zip(self.layers, self.rows, strict=True):
            out = rows.push(v[:, :, 0].transpose(1, 2)).transpose(1, 2)[:, :, None]  # [B, 2 C, 1, W]
            v, across = layer.vertical_step(v, out, layer.context(self.labels, upper))
            self.across.append(across[:, :, 0].transpose(1, 2).contiguous())  # [B, W, 2 C]


def gate(x: Tensor, dim: int) -> Tensor:
    """tanh(a) sigmoid(b) of the halves a, b of ``x``."""
    a, b = x.chunk(2, dim=dim)
    return a.tanh() * b.sigmoid()
