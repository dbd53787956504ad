"""Convolutional encoder and decoder of the VQ-VAE papers, in one, two or three dimensions.

Encoder: stride-2 4x4 convolutions, a 3x3 convolution, residual blocks (ReLU, 3x3, ReLU, 1x1), ReLU.
Decoder: the mirror image. No ReLU works in place, so a skip connection carries what entered its block.
Sources: van den Oord et al. 2017 (arXiv:1711.00937, section 4.1), Razavi et al. 2019 (arXiv:1906.00446).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vq_kernels.checks import check_choice, check_integer

CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class ResidualBlock(nn.Module):
    """``x + conv1x1(relu(conv3x3(relu(x))))``; with ``relu_skip`` the skip carries ``relu(x)``.

    ``relu_skip`` exists for converted checkpoints that were trained with an in-place ReLU on the skip.
    """

    def __init__(self, channels: int, hidden: int, ndim: int, relu_skip: bool = False) -> None:
        super().__init__()
        self.conv_in = CONV[ndim](channels, hidden, 3, padding=1)
        self.conv_out = CONV[ndim](hidden, channels, 1)
        self.relu_skip = relu_skip

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        change: Tensor = self.conv_out(F.relu(self.conv_in(active)))
        return (active if self.relu_skip else x) + change


def residual_stack(channels: int, hidden: int, layers: int, ndim: int, relu_skip: bool) -> nn.Sequential:
    """``layers`` residual blocks and a final ReLU."""
    blocks: list[nn.Module] = [ResidualBlock(channels, hidden, ndim, relu_skip) for _ in range(layers)]
    return nn.Sequential(*blocks, nn.ReLU())


class Encoder(nn.Module):
    """``[B, in_channels, *S] -> [B, hidden, *(S / downscale)]``; downscale is 2, 4, 8, ..."""

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        residual_layers: int,
        residual_hidden: int,
        downscale: int,
        ndim: int = 2,
        relu_skip: bool = False,
    ) -> None:
        super().__init__()
        halvings = log2_downscale(downscale)
        widths = [in_channels, hidden // 2] + [hidden] * (halvings - 1)
        self.down = nn.ModuleList(
            CONV[ndim](a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.conv = CONV[ndim](widths[-1], hidden, 3, padding=1)
        self.residual = residual_stack(hidden, residual_hidden, residual_layers, ndim, relu_skip)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.down:
            x = F.relu(conv(x))
        features: Tensor = self.residual(self.conv(x))
        return features


class Decoder(nn.Module):
    """``[B, in_channels, *S] -> [B, out_channels, *(S * upscale)]``; upscale is 2, 4, 8, ..."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        residual_layers: int,
        residual_hidden: int,
        upscale: int,
        ndim: int = 2,
        relu_skip: bool = False,
    ) -> None:
        super().__init__()
        doublings = log2_downscale(upscale)
        self.conv = CONV[ndim](in_channels, hidden, 3, padding=1)
        self.residual = residual_stack(hidden, residual_hidden, residual_layers, ndim, relu_skip)
        widths = [hidden] * max(1, doublings - 1) + [hidden // 2] * (doublings > 1) + [out_channels]
        self.up = nn.ModuleList(
            CONV_TRANSPOSED[ndim](a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(self.conv(x))
        for number, conv in enumerate(self.up):
            x = conv(F.relu(x) if number else x)
        return x


def initialize_as_sonnet(layer: nn.Module) -> None:
    """Weights and biases of a convolution as Sonnet starts them, on which the published notebook ran.

    Normal with a deviation of one over the root of the inputs of an output (channels times kernel), cut
    off at two deviations; biases are zero.
    """
    if not isinstance(layer, (*CONV.values(), *CONV_TRANSPOSED.values())):
        return
    convolution: Any = layer
    deviation = 1 / math.sqrt(convolution.in_channels * math.prod(convolution.kernel_size))
    nn.init.trunc_normal_(convolution.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.zeros_(convolution.bias)


def log2_downscale(downscale: int) -> int:
    """Number of stride-2 layers; TypeError or ValueError unless ``downscale`` is 2, 4, 8, ..."""
    check_integer(2, downscale=downscale)
    if downscale & (downscale - 1):
        raise ValueError(f"downscale is {downscale}; accepted: 2, 4, 8 or a higher power of two")
    return int(math.log2(downscale))


def check_convolutions(
    *, in_channels: int, hidden: int, residual_layers: int, residual_hidden: int, ndim: int
) -> None:
    """TypeError or ValueError for the first argument with which no encoder and decoder can be built."""
    check_integer(1, in_channels=in_channels, residual_hidden=residual_hidden)
    check_integer(2, hidden=hidden)  # the first convolution has half as many
    check_integer(0, residual_layers=residual_layers)
    check_choice(tuple(CONV), ndim=ndim)


def check_sizes(
    name: str, sizes: Sequence[int], shortest: int = 1, longest: int | None = None
) -> tuple[int, ...]:
    """``sizes`` as a tuple; TypeError or ValueError unless they are enough integers of at least 1."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise TypeError(f"{name} is {sizes!r}; accepted: a sequence of integers of at least 1")
    if len(sizes) < shortest or (longest is not None and len(sizes) > longest):
        most = f"{shortest} or more" if longest is None else f"{shortest} to {longest}"
        accepted = f"{shortest} integers" if longest == shortest else f"{most} integers"
        raise ValueError(f"{name} is {list(sizes)}; accepted: {accepted}")
    for place, size in enumerate(sizes):
        check_integer(1, **{f"{name}[{place}]": size})
    return tuple(sizes)
