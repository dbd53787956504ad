"""Base of the convolutional priors: codes with one or two axes as ``[B, H, W]``, and the level above."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.layers.dropout import Dropout
from models.priors.attention import upsample_to
from models.priors.base import AutoregressivePrior, Decoder


class GridPrior(AutoregressivePrior):
    """A sequence ``[B, L]`` is the map ``[B, 1, L]``. ``upper`` arrives as features ``[B, C, H, W]``."""

    upper_stack: UpperStack | None

    @abstractmethod
    def _grid_logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        """Logits ``[B, K, H, W]`` of codes ``[B, H, W]`` with upper features ``[B, C, H, W]``."""

    @abstractmethod
    def _grid_decoder(
        self, batch: int, height: int, width: int, labels: Tensor | None, upper: Tensor | None
    ) -> Decoder:
        """A decoder with empty caches for ``[batch, height, width]``."""

    def _logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        grid = _as_grid(codes)
        logits = self._grid_logits(grid, labels, self._upper_features(upper, *grid.shape[1:]))
        return logits if codes.ndim == 3 else logits[:, :, 0]

    def _decoder(self, shape: tuple[int, ...], labels: Tensor | None, upper: Tensor | None) -> Decoder:
        height, width = (1, *shape[1:])[-2:]
        return self._grid_decoder(shape[0], height, width, labels, self._upper_features(upper, height, width))

    def _upper_features(self, upper: Tensor | None, height: int, width: int) -> Tensor | None:
        if upper is None or self.upper_stack is None:
            return None
        return upsample_to(self.upper_stack(_as_grid(upper)), (height, width))


class UpperStack(nn.Module):
    """The residual conditioning stack of VQ-VAE-2 (Razavi et al., 2019) over the codes of the level above.

    int64 ``[B, H', W']`` to features ``[B, channels, H', W']``. The upper map is wholly known, so its
    convolutions look in every direction.
    """

    def __init__(self, codebook_size: int, channels: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.code = nn.Embedding(codebook_size, channels)
        self.conv = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.blocks = nn.ModuleList(_UpperBlock(channels, dropout) for _ in range(blocks))

    def forward(self, upper: Tensor) -> Tensor:
        x: Tensor = self.conv(self.code(upper).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x)
        return x


class _UpperBlock(nn.Module):
    """x + GLU(conv(ELU(conv(ELU(x)))))."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.conv2 = weight_norm(nn.Conv2d(channels, 2 * channels, 3, padding=1))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.elu(self.conv1(F.elu(x))))
        return x + F.glu(self.conv2(hidden), dim=1)


def _as_grid(codes: Tensor) -> Tensor:
    return codes if codes.ndim == 3 else codes[:, None]
