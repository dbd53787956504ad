"""VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446) with any number of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.autoencoders.blocks import (
    CONV,
    CONV_TRANSPOSED,
    Decoder,
    Encoder,
    check_convolutions,
    check_sizes,
    log2_downscale,
)
from models.autoencoders.discrete import DiscreteAutoencoder, QuantizedLevel
from models.autoencoders.likelihoods import make_likelihood
from models.autoencoders.pixel_decoder import make_pixel_decoder
from models.autoencoders.quantizer import QuantizerArguments, make_quantizer
from models.pretrained import constructor_arguments
from vq_kernels.quantizers import Quantizer


class VQVAE2(DiscreteAutoencoder):
    """A code map for each level; every lower level is conditioned on the levels above it.

    Encoders run bottom to top (the image, then the features of the level below). Quantisation runs top to
    bottom: a level's decoder gives features at the size of the level below, which are concatenated with
    that level's encoder features before its codes are chosen. The image decoder sees every level,
    upsampled to the size of the bottom one.

    Shapes, for the defaults and 256 x 256 images: x ``[B, 3, 256, 256]``, top codes ``[B, 32, 32]``, bottom
    codes ``[B, 64, 64]``.

    Args:
        downscales: downscale of each level with respect to the one below it (the first: to the data),
            bottom first; ``(4, 2)`` in the paper, ``(4, 2, 2)`` for three levels.
        level_codebook_sizes: number of codes of each level, top first, in place of ``codebook_size``.
        The others are those of :class:`models.VQVAE`, the same for every level.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        downscales: Sequence[int] = (4, 2),
        hidden: int = 128,
        residual_layers: int = 2,
        residual_hidden: int = 32,
        ndim: int = 2,
        likelihood: str = "mse",
        variance: float = 1.0,
        data_levels: int = 256,
        scale: float = 1.0,
        level_codebook_sizes: Sequence[int] | None = None,
        decoder: str = "independent",
        decoder_width: int = 32,
        decoder_layers: int = 3,
        **quantizer: Any,
    ) -> None:
        config = constructor_arguments(locals(), leave_out="quantizer")
        super().__init__()
        arguments = QuantizerArguments.of("VQVAE2", quantizer)
        self.config = config | arguments.as_dict()
        check_convolutions(
            in_channels=in_channels,
            hidden=hidden,
            residual_layers=residual_layers,
            residual_hidden=residual_hidden,
            ndim=ndim,
        )
        self.downscales = check_sizes("downscales", downscales, shortest=2)
        levels = len(downscales)
        self.in_channels, self.ndim = in_channels, ndim
        self.codebook_size, self.scale = arguments.codebook_size, scale
        self.level_downscales = tuple(math.prod(downscales[: level + 1]) for level in reversed(range(levels)))
        dim, shape = arguments.features, (hidden, residual_layers, residual_hidden)
        self.likelihood = make_likelihood(likelihood, in_channels, variance, data_levels, scale)
        self.encoders = nn.ModuleList(
            Encoder(hidden if level else in_channels, *shape, scale, ndim)
            for level, scale in enumerate(downscales)
        )
        top = levels - 1
        self.to_embedding = nn.ModuleList(
            CONV[ndim](hidden if level == top else hidden + dim, dim, 1) for level in range(levels)
        )
        sizes = [arguments.codebook_size] * levels
        if level_codebook_sizes is not None:
            sizes = list(check_sizes("level_codebook_sizes", level_codebook_sizes, levels, levels))[::-1]
        self.quantizers = nn.ModuleList(
            make_quantizer(replace(arguments, codebook_size=size)) for size in sizes
        )
        self.conditioners = nn.ModuleList(
            Decoder(dim if level == top else 2 * dim, dim, *shape, downscales[level], ndim)
            for level in range(1, levels)
        )
        self.upsamplers = nn.ModuleList(
            _upsampler(dim, math.prod(downscales[1 : level + 1]), ndim) for level in range(1, levels)
        )
        parameters = in_channels * self.likelihood.parameters_per_channel
        pixels = make_pixel_decoder(decoder, in_channels, parameters, decoder_width, decoder_layers, ndim)
        outputs = parameters if pixels is None else decoder_width
        self.decoder = Decoder(levels * dim, outputs, *shape, downscales[0], ndim)
        self.pixels = pixels

    @property
    def level_quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizers, top first; ``quantizers``, as checkpoints have it, is bottom first."""
        return tuple(cast(Quantizer, quantizer) for quantizer in reversed(self.quantizers))

    def _quantize(self, x: Tensor, freeze: bool | None = None) -> list[QuantizedLevel]:
        features = []
        x = self._in_units(x)
        for encoder in self.encoders:
            x = encoder(x)
            features.append(x)
        levels: list[QuantizedLevel] = []
        condition: Tensor | None = None
        for level in reversed(range(len(features))):
            inputs = [features[level]] if condition is None else [condition, features[level]]
            z = self.to_embedding[level](torch.cat(inputs, dim=1))  # [B, D, *S_level]
            levels.append(self._quantize_level(cast(Quantizer, self.quantizers[level]), z, freeze))
            if level:
                quantized = levels[-1].quantized
                inputs = [quantized] if condition is None else [condition, quantized]
                condition = self.conditioners[level - 1](torch.cat(inputs, dim=1))
        return levels

    def _decode(self, quantized: Sequence[Tensor]) -> Tensor:
        *upper, bottom = quantized
        above = zip(list(self.upsamplers)[::-1], upper, strict=True)
        parameters: Tensor = self.decoder(torch.cat([up(code) for up, code in above] + [bottom], dim=1))
        return parameters


def _upsampler(channels: int, factor: int, ndim: int) -> nn.Sequential:
    layers = [
        CONV_TRANSPOSED[ndim](channels, channels, 4, stride=2, padding=1)
        for _ in range(log2_downscale(factor))
    ]
    return nn.Sequential(*layers)
