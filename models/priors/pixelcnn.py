"""Gated PixelCNN (van den Oord et al., 2016, "Conditional Image Generation with PixelCNN Decoders")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pretrained import constructor_arguments
from models.priors.base import Decoder, check_dropout
from models.priors.causal import (
    LeftCache,
    LeftConv,
    RowsCache,
    RowsConv,
    check_kernel,
    shift_down,
    shift_right,
)
from models.priors.dropout import Dropout
from models.priors.grid import GridPrior, UpperStack
from vq_kernels.checks import check_integer


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
        """The biases ``[B, 4 C, 1 or H, 1 or W]`` that the label and the upper level add to the gates."""
        biases: list[Tensor] = []
        if self.label is not None and labels is not None:
            biases.append(self.label(labels)[:, :, None, None])
        if self.upper is not None and upper is not None:
            biases.append(self.upper(upper))
        return biases


class PixelCNN(GridPrior):
    """Gated PixelCNN prior for code maps ``[B, H, W]`` of any size, or sequences ``[B, L]``.

    Args:
        codebook_size: K, codes are in [0, K).
        channels: of both stacks.
        layers: gated layers. With r = ``first_kernel_size // 2 + (layers - 1) * (kernel_size // 2)`` each
            position sees r + 1 codes to its left, r + 1 rows up, and in these at least r to either side.
        kernel_size, first_kernel_size: odd, at least 3.
        dropout: on the gated features of the horizontal stack.
        num_classes: adds a bias of the class to every gate; None for no labels.
        upper_codebook_size: codes of the level above; None for no upper level.
        null_label: one label more, which says nothing of the class.
        upper_blocks: residual blocks over the upper map.

    The output layer starts at zero, so an untrained prior is the uniform distribution.
    """

    def __init__(
        self,
        codebook_size: int,
        channels: int = 128,
        *,
        layers: int = 15,
        kernel_size: int = 5,
        first_kernel_size: int = 7,
        dropout: float = 0.1,
        num_classes: int | None = None,
        upper_codebook_size: int | None = None,
        null_label: bool = False,
        upper_blocks: int = 3,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__(codebook_size, num_classes, upper_codebook_size, null_label)
        check_integer(1, channels=channels, layers=layers, upper_blocks=upper_blocks)
        check_kernel(kernel_size=kernel_size, first_kernel_size=first_kernel_size)
        check_dropout(dropout)
        self.config = arguments
        self.channels = channels
        self.code = nn.Embedding(codebook_size, channels)
        self.upper_stack = None
        if upper_codebook_size is not None:
            self.upper_stack = UpperStack(upper_codebook_size, channels, upper_blocks, dropout)
        self.layers = nn.ModuleList(
            GatedLayer(
                channels,
                first_kernel_size if layer == 0 else kernel_size,
                self.num_labels,
                channels if upper_codebook_size is not None else 0,
                dropout,
            )
            for layer in range(layers)
        )
        self.hidden = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, codebook_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _grid_logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        x = self.code(codes).movedim(-1, 1)  # [B, C, H, W]
        v, h = shift_down(x), shift_right(x)
        skips = torch.zeros_like(h)
        for layer in self.layers:
            v, h, skip = layer(v, h, labels, upper)
            skips = skips + skip
        return self._output(skips.movedim(1, -1)).movedim(-1, 1)

    def _grid_decoder(
        self, batch: int, height: int, width: int, labels: Tensor | None, upper: Tensor | None
    ) -> Decoder:
        return _CachedPixelCNN(self, batch, width, labels, upper)

    def _output(self, skips: Tensor) -> Tensor:
        """Logits ``[..., K]`` from the summed skip connections ``[..., C]``."""
        logits: Tensor = self.head(F.relu(self.hidden(F.relu(skips))))
        return logits


class _CachedPixelCNN:
    """The decoder: the vertical stack once a row, the horizontal one once a code."""

    def __init__(
        self, prior: PixelCNN, batch: int, width: int, labels: Tensor | None, upper: Tensor | None
    ) -> None:
        self.prior = prior
        self.width = width
        self.labels = labels
        self.upper = upper
        self.position = 0
        self.layers: list[GatedLayer] = list(cast("Iterable[GatedLayer]", prior.layers))
        self.rows = [RowsCache(layer.vertical, batch, width) for layer in self.layers]
        self.left = [LeftCache(layer.horizontal, batch, width) for layer in self.layers]
        self.across: list[Tensor] = []
        self.row = prior.code.weight.new_zeros(batch, width, prior.channels)  # embedded codes of this row
        self.nothing = torch.zeros_like(self.row[:, 0])

    def __call__(self, previous: Tensor | None) -> Tensor:
        row, column = divmod(self.position, self.width)
        self.position += 1
        h = skips = self.nothing
        if previous is not None:
            h = self.prior.code(previous)
            self.row[:, column - 1] = h  # column 0 ends the row above: -1 is its last
        if column == 0:
            self._start_row(row)
            h = self.nothing
        for layer, left, across in zip(self.layers, self.left, self.across, strict=True):
            y = gate(left.step(column, h, across[:, column]), dim=-1)
            residual, skip = layer.output(y)
            h, skips = h + residual, skips + skip
        return self.prior._output(skips)

    def _start_row(self, row: int) -> None:
        """The vertical stack at ``row``, whose first input is the row of codes above (zero for the first)."""
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
