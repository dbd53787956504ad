"""Gated PixelCNN (van den Oord et al., 2016, "Conditional Image Generation with PixelCNN Decoders")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.causal import check_kernel
from models.layers.gated import GatedLayers, GatedSteps
from models.pretrained import constructor_arguments
from models.priors.base import Decoder, check_dropout
from models.priors.grid import GridPrior, UpperStack
from vq_kernels.checks import check_integer


class PixelCNN(GridPrior):
    """Gated PixelCNN prior for code maps ``[B, H, W]`` of any size, or sequences ``[B, L]``.

    Args:
        codebook_size: K, codes are in [0, K).
        channels: of both stacks.
        layers: gated layers; how far they see says :class:`models.layers.gated.GatedLayers`.
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
        self.layers = GatedLayers(
            channels,
            layers,
            first_kernel_size=first_kernel_size,
            kernel_size=kernel_size,
            num_classes=self.num_labels,
            upper_channels=channels if upper_codebook_size is not None else 0,
            dropout=dropout,
        )
        self.hidden = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, codebook_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _grid_logits(self, codes: Tensor, labels: Tensor | None, upper: Tensor | None) -> Tensor:
        x = self.code(codes).movedim(-1, 1)  # [B, C, H, W]
        skips: Tensor = self.layers(x, labels, upper)
        return self._output(skips.movedim(1, -1)).movedim(-1, 1)

    def _grid_decoder(
        self, batch: int, height: int, width: int, labels: Tensor | None, upper: Tensor | None
    ) -> Decoder:
        steps = GatedSteps(self.layers, batch, width, labels, upper)

        def next_logits(previous: Tensor | None) -> Tensor:
            return self._output(steps(None if previous is None else self.code(previous)))

        return next_logits

    def _output(self, skips: Tensor) -> Tensor:
        """Logits ``[..., K]`` from the summed skip connections ``[..., C]``."""
        logits: Tensor = self.head(F.relu(self.hidden(F.relu(skips))))
        return logits
