"""Causal convolutions made by shifting and padding, and the caches that run them one position at a time.

A raster-order receptive field is a block of rows above and a piece of the same row to the left. Each of the
two is a dense convolution whose input is shifted, so no weight is masked and none is wasted. It also is what
makes sampling cheap: at the start of a row everything above is known, so that part is done once for the whole
row, and only the piece to the left is left to do for each position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vq_kernels.checks import check_integer


class RowsConv(nn.Conv2d):
    """Convolution over a block of ``rows`` x ``width`` that ends at, or with ``strictly_above`` over, a row.

    ``[B, C, H, W]`` to ``[B, C', H, W]``; ``width`` is odd and centred, since whole rows are known.
    """

    def __init__(
        self, channels: int, out_channels: int, rows: int, width: int, *, strictly_above: bool = False
    ) -> None:
        super().__init__(channels, out_channels, (rows, width))
        self.strictly_above = strictly_above

    def forward(self, input: Tensor) -> Tensor:
        rows, width = self.kernel_size
        top, bottom = (rows, -1) if self.strictly_above else (rows - 1, 0)
        return super().forward(F.pad(input, (width // 2, width // 2, top, bottom)))


class LeftConv(nn.Conv2d):
    """Convolution over a position and the ``taps - 1`` to its left, without bias: ``[B, C, H, W]``."""

    def __init__(self, channels: int, out_channels: int, taps: int) -> None:
        super().__init__(channels, out_channels, (1, taps), bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (self.kernel_size[1] - 1, 0)))


def shift_down(x: Tensor) -> Tensor:
    """Each row of ``[B, C, H, W]`` moves one down; the first becomes zero."""
    return F.pad(x, (0, 0, 1, -1))


def shift_right(x: Tensor) -> Tensor:
    """Each column of ``[B, C, H, W]`` moves one right; the first becomes zero."""
    return F.pad(x, (1, -1, 0, 0))


def shift_raster(x: Tensor) -> Tensor:
    """Each position of ``[B, C, H, W]`` gets what was before it in raster order; the first becomes zero.

    Unlike with :func:`shift_right` the first column gets the end of the row above. A network of causal
    convolutions alone cannot bring that code there: the last position of a row does not know its own code.
    """
    return F.pad(x.flatten(2), (1, -1)).reshape(x.shape)


class RowsCache:
    """Runs a :class:`RowsConv` row by row; it keeps as many input rows as the kernel has, channels last."""

    def __init__(self, conv: RowsConv, batch: int, width: int) -> None:
        rows, columns = conv.kernel_size
        self.half = columns // 2
        self.width = width
        self.bias = conv.bias
        # In the format of the cached rows, so that the convolution reorders neither.
        self.weight = compute(conv.weight).contiguous(memory_format=torch.channels_last)
        self.rows = self.weight.new_zeros(batch, rows, width + 2 * self.half, conv.in_channels)

    def push(self, row: Tensor) -> Tensor:
        """Adds an input row ``[B, W, C]``; gives the output ``[B, W, C']`` of the block that ends with it."""
        self.rows = self.rows.roll(-1, dims=1)
        self.rows[:, -1, self.half : self.half + self.width] = row
        out = F.conv2d(self.rows.permute(0, 3, 1, 2), self.weight, self.bias)  # [B, C', 1, W]
        return out[:, :, 0].transpose(1, 2)


class LeftCache:
    """Runs a :class:`LeftConv` position by position, row after row: a step reads only what its row wrote."""

    def __init__(self, conv: LeftConv, batch: int, width: int) -> None:
        self.taps = conv.kernel_size[1]
        weight = compute(conv.weight)[:, :, 0].permute(2, 1, 0)  # [taps, C, C']
        self.weight = weight.reshape(-1, conv.out_channels).contiguous()
        self.padded = weight.new_zeros(batch, self.taps - 1 + width, conv.in_channels)

    @property
    def row(self) -> Tensor:
        """The inputs of the row, ``[B, W, C]``, once its last position is stepped; zero before the first."""
        return self.padded[:, self.taps - 1 :]

    def step(self, column: int, x: Tensor, rest: Tensor) -> Tensor:
        """Input ``[B, C]`` at ``column``; gives the output plus ``rest``, ``[B, C']``."""
        self.padded[:, column + self.taps - 1] = x
        window = self.padded[:, column : column + self.taps].flatten(1)  # a view: the taps lie side by side
        return torch.addmm(rest, window, self.weight)


def compute(weight: Tensor) -> Tensor:
    """The weight in the precision that autocast, where it is on, would convert it to at every single call."""
    if torch.is_autocast_enabled(weight.device.type):
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    return weight.detach()


def check_kernel(**arguments: int) -> None:
    """Raise TypeError or ValueError for the first kernel size that is no odd integer of at least 3."""
    check_integer(3, **arguments)
    for name, size in arguments.items():
        if size % 2 == 0:
            raise ValueError(f"{name} is {size}; accepted: an odd integer of at least 3")
