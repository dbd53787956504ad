"""PixelSNAIL (Chen et al., 2018), as the prior of VQ-VAE-2 (Razavi et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.layers.causal import LeftCache, LeftConv, RowsCache, RowsConv, check_kernel, shift_raster
from models.pretrained import constructor_arguments
from models.priors.attention import KeyValueCache, token_map, token_rows
from models.priors.base import Decoder, check_dropout
from models.priors.grid import GridPrior, UpperStack
from models.priors.snail_blocks import (
    CausalAttention,
    GatedPointwise,
    GatedResidual,
    GatedResidualCache,
    PositionMix,
)
from vq_kernels.checks import check_integer


class Block(nn.Module):
    """Gated residual blocks, then causal attention or, without it, the background alone."""

    def __init__(self, residual: list[GatedResidual], mix: CausalAttention | PositionMix) -> None:
        super().__init__()
        self.residual = nn.ModuleList(residual)
        self.mix: CausalAttention | PositionMix = mix

    def forward(self, x: Tensor, background: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        """x ``[B, C, H, W]``, background ``[B, H W, 2]``."""
        block_input = token_rows(x)
        for residual in self.residual:
            x = residual(x, labels, upper)
        return token_map(self.mix(block_input, token_rows(x), background), x.shape[2:])


class PixelSNAIL(GridPrior):
    """PixelSNAIL prior for code maps ``[B, H, W]`` of any size, or sequences ``[B, L]``.

    The defaults are those in use for the upper level of VQ-VAE-2 at 32 x 32; for the lower one, at 64 x 64,
    take ``attention=False`` and ``upper_codebook_size``. Attention sees every earlier code; without it,
    a position sees the n-th row above up to ``n * (kernel_size // 2)`` columns to its right.

    Args:
        codebook_size: K, codes are in [0, K).
        channels: of the main path; with attention, keys and values have half as many.
        kernel_size: odd, at least 3.
        blocks, res_blocks: how many blocks, and gated residual blocks in each.
        res_channels: hidden channels of residual blocks; None for as many as ``channels``.
        attention, heads: causal attention at the end of each block; ``heads`` divides ``channels / 2``.
        out_res_blocks: 1 x 1 residual blocks before the output.
        dropout: in residual blocks, and of positions from a head's attention.
        num_classes: adds a bias of the class to every gate; None for no labels.
        upper_codebook_size: codes of the level above; None for no upper level.
        null_label: one label more, which says nothing of the class.
        upper_blocks, upper_channels: of the residual conditioning stack; None for ``channels``.

    The output layer starts at zero, so an untrained prior is the uniform distribution.
    """

    def __init__(
        self,
        codebook_size: int,
        channels: int = 256,
        *,
        kernel_size: int = 5,
        blocks: int = 4,
        res_blocks: int = 4,
        res_channels: int | None = None,
        attention: bool = True,
        heads: int = 8,
        out_res_blocks: int = 0,
        dropout: float = 0.1,
        num_classes: int | None = None,
        upper_codebook_size: int | None = None,
        null_label: bool = False,
        upper_blocks: int = 3,
        upper_channels: int | None = None,
    ) -> None:
        arguments = constructor_arguments(locals())
        super().__init__(codebook_size, num_classes, upper_codebook_size, null_label)
        res_channels = channels if res_channels is None else res_channels
        upper_channels = channels if upper_channels is None else upper_channels
        check_integer(1, channels=channels, blocks=blocks, res_blocks=res_blocks, res_channels=res_channels)
        check_integer(1, heads=heads, upper_blocks=upper_blocks, upper_channels=upper_channels)
        check_integer(0, out_res_blocks=out_res_blocks)
        check_kernel(kernel_size=kernel_size)
        check_dropout(dropout)
        if attention and channels % (2 * heads):
            raise ValueError(f"channels is {channels}; accepted: a multiple of 2 * heads = {2 * heads}")
        self.config = arguments
        self.channels = channels
        self.code = nn.Embedding(codebook_size, channels)
        self.above = weight_norm(
            RowsConv(channels, channels, kernel_size - 1, kernel_size, strictly_above=True)
        )
        self.left = weight_norm(LeftConv(channels, channels, kernel_size // 2 + 1))
        self.upper_stack = None
        if upper_codebook_size is not None:
            self.upper_stack = UpperStack(upper_codebook_size, upper_channels, upper_blocks, dropout)
        width = upper_channels if upper_codebook_size is not None else 0

        def block() -> Block:
            residual = [
                GatedResidual(channels, res_channels, kernel_size, dropout, self.num_labels, width)
                for _ in range(res_blocks)
            ]
            return Block(
                residual, CausalAttention(channels, heads, dropout) if attention else PositionMix(channels)
            )

        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.out_blocks = nn.Sequential(
            *(GatedPointwise(channels, res_channels, dropout) for _ in range(out_res_blocks))
        )
        self.head = nn.Linear(channels, codebook_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _grid_logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        batch, height, width = codes.shape
        x = self.code(codes).movedim(-1, 1)  # [B, C, H, W]
        x = self.above(x) + self.left(shift_raster(x))
        background = self._background(batch, height, width).flatten(1, 2)
        for block in self.blocks:
            x = block(x, background, labels, upper)
        return token_map(self._output(token_rows(x)), (height, width))

    def _grid_decoder(
        self, batch: int, height: int, width: int, labels: Tensor | None, upper: Tensor | None
    ) -> Decoder:
        return _CachedPixelSNAIL(self, batch, height, width, labels, upper)

    def _output(self, tokens: Tensor) -> Tensor:
        """Logits ``[..., K]`` of features ``[..., C]``."""
        logits: Tensor = self.head(F.elu(self.out_blocks(tokens)))
        return logits

    def _background(self, batch: int, height: int, width: int) -> Tensor:
        """Row and column of each position, from -1/2 to 1/2 whatever the size: ``[B, H, W, 2]``."""
        like = self.code.weight
        axes = [
            (torch.arange(size, device=like.device, dtype=like.dtype) - size / 2) / size
            for size in (height, width)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return grid.expand(batch, height, width, 2)


class _CachedPixelSNAIL:
    """The decoder: what lies above once a row, what lies to the left and the attention once a code."""

    def __init__(
        self,
        prior: PixelSNAIL,
        batch: int,
        height: int,
        width: int,
        labels: Tensor | None,
        upper: Tensor | None,
    ) -> None:
        self.prior = prior
        self.width = width
        self.labels = labels
        self.upper = upper
        self.position = 0
        self.background = prior._background(batch, height, width).flatten(1, 2)
        self.above = RowsCache(prior.above, batch, width)
        self.left = LeftCache(prior.left, batch, width)
        self.blocks = [
            (
                [
                    GatedResidualCache(residual, batch, width)
                    for residual in cast("Iterable[GatedResidual]", block.residual)
                ],
                block.mix,
                KeyValueCache(height * width),
            )
            for block in cast("Iterable[Block]", prior.blocks)
        ]
        self.row = prior.code.weight.new_zeros(batch, width, prior.channels)  # embedded codes of this row
        self.nothing = torch.zeros_like(self.row[:, 0])
        self.from_above: Tensor

    def __call__(self, previous: Tensor | None) -> Tensor:
        position = self.position
        row, column = divmod(position, self.width)
        self.position += 1
        code = self.nothing
        if previous is not None:
            code = self.prior.code(previous)
            self.row[:, column - 1] = code  # column 0 ends the row above: -1 is its last
        if column == 0:
            self._start_row(row)
        x = self.left.step(column, code, self.from_above[:, column])
        background = self.background[:, position : position + 1]
        for residuals, mix, attended in self.blocks:
            block_input = x
            for residual in residuals:
                x = residual.step(column, x)
            x = mix(block_input[:, None], x[:, None], background, attended)[:, 0]
        return self.prior._output(x)

    def _start_row(self, row: int) -> None:
        upper = None if self.upper is None else self.upper[:, :, row : row + 1]
        self.from_above = self.above.push(self.row)
        for residuals, _, _ in self.blocks:
            for residual in residuals:
                residual.start_row(self.labels, upper)
