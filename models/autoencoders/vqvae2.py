"""VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446) with any number of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.autoencoders.base import AutoencoderOutput
from models.autoencoders.blocks import (
    CONV,
    CONV_TRANSPOSED,
    Decoder,
    Encoder,
    check_convolutions,
    check_input,
    log2_downscale,
)
from models.autoencoders.likelihoods import make_likelihood, mean_or_zero
from models.autoencoders.vqvae import make_quantizer, quantizers
from models.checks import check_divides, check_dtype, check_same_images, check_sizes
from models.pretrained import Pretrained, constructor_arguments


class VQVAE2(Pretrained):
    """A code map for each level; every lower level is conditioned on the levels above it.

    Encoders run bottom to top (the image, then the features of the level below). Quantisation runs top to
    bottom: a level's decoder gives features at the size of the level below, which are concatenated with
    that level's encoder features before its codes are chosen. The image decoder sees every level,
    upsampled to the size of the bottom one.

    Shapes, for the defaults and 256 x 256 images: top codes ``[B, 32, 32]``, bottom ``[B, 64, 64]``.

    Args:
        downscales: downscale of each level with respect to the one below it (the first: to the data),
            bottom first; ``(4, 2)`` in the paper, ``(4, 2, 2)`` for three levels.
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
        embedding_dim: int = 64,
        codebook_size: int = 512,
        ndim: int = 2,
        codebook: str = "ema",
        alpha: float = 1.0,
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans_init: bool = False,
        dead_code_threshold: float = 0.0,
        manual_ema_update: bool = False,
        likelihood: str = "mse",
        variance: float = 1.0,
    ) -> None:
        config = constructor_arguments(locals())
        super().__init__()
        self.config = config
        check_convolutions(
            in_channels=in_channels,
            hidden=hidden,
            residual_layers=residual_layers,
            residual_hidden=residual_hidden,
            ndim=ndim,
        )
        if len(check_sizes("downscales", downscales)) < 2:
            raise ValueError(f"downscales must name two or more levels, got {list(downscales)}")
        self.in_channels, self.ndim = in_channels, ndim
        self.downscales, self.codebook_size = tuple(downscales), codebook_size
        self.total_downscale = math.prod(downscales)
        levels = len(downscales)
        dim, shape = embedding_dim, (hidden, residual_layers, residual_hidden)
        self.likelihood = make_likelihood(likelihood, in_channels, variance)
        self.encoders = nn.ModuleList(
            Encoder(hidden if level else in_channels, *shape, scale, ndim)
            for level, scale in enumerate(downscales)
        )
        top = levels - 1
        self.to_embedding = nn.ModuleList(
            CONV[ndim](hidden if level == top else hidden + dim, dim, 1) for level in range(levels)
        )
        self.quantizers = nn.ModuleList(
            make_quantizer(
                dim,
                codebook_size,
                codebook=codebook,
                alpha=alpha,
                beta=beta,
                decay=decay,
                eps=eps,
                kmeans_init=kmeans_init,
                dead_code_threshold=dead_code_threshold,
                manual_ema_update=manual_ema_update,
            )
            for _ in range(levels)
        )
        self.conditioners = nn.ModuleList(
            Decoder(dim if level == top else 2 * dim, dim, *shape, downscales[level], ndim)
            for level in range(1, levels)
        )
        self.upsamplers = nn.ModuleList(
            _upsampler(dim, math.prod(downscales[1 : level + 1]), ndim) for level in range(1, levels)
        )
        outputs = in_channels * self.likelihood.parameters_per_channel
        self.decoder = Decoder(levels * dim, outputs, *shape, downscales[0], ndim)

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """x: ``[B, C, *S]`` float in -0.5..0.5, S divisible by all downscales together; else ValueError.

        The loss of an empty batch is 0.
        """
        quantized, indices, latent_losses, commitments = self._quantize(x)
        parameters = self._decode(quantized)
        reconstruction_loss = self.likelihood.loss(parameters, x)
        terms = {
            "reconstruction": reconstruction_loss.detach(),
            "commitment": torch.stack(commitments).sum(),
        }
        loss = reconstruction_loss + torch.stack(latent_losses).sum()
        return AutoencoderOutput(self.likelihood.mean(parameters), loss, terms, tuple(indices))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Codes of every level, top first: ``[B, *S_level]`` int64 each. Never learns, not in train mode."""
        return tuple(self._quantize(x, freeze=True)[1])

    def decode_codes(self, codes: Sequence[Tensor]) -> Tensor:
        """Mean image ``[B, C, *S]`` of the code maps of all levels, top first."""
        return self.likelihood.mean(self._decode(self._look_up(codes)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Mean image of the codes of ``x``."""
        return self.decode_codes(self.encode(x))

    def decoder_log_prob(self, x: Tensor, codes: Sequence[Tensor]) -> Tensor:
        """log p(x | codes) of every element in nats: x's shape."""
        check_input(x, self.in_channels, self.ndim, self.total_downscale)
        parameters = self._decode(self._look_up(codes))
        check_same_images(x, parameters)
        return self.likelihood.log_prob(parameters, x)

    def code_shapes(self, spatial: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Size of every level's code map, top first, for data of size ``spatial``; else ValueError."""
        check_divides(spatial, self.ndim, self.total_downscale)
        scales = [math.prod(self.downscales[: level + 1]) for level in range(len(self.downscales))]
        return tuple(tuple(size // scale for size in spatial) for scale in reversed(scales))

    def _quantize(
        self, x: Tensor, freeze: bool | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Quantized maps, indices, latent losses and commitment errors, each top first."""
        check_input(x, self.in_channels, self.ndim, self.total_downscale)
        check_dtype(x, self)
        features = []
        for encoder in self.encoders:
            x = encoder(x)
            features.append(x)
        results: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] = ([], [], [], [])
        condition: Tensor | None = None
        for level in reversed(range(len(features))):
            inputs = [features[level]] if condition is None else [condition, features[level]]
            z = self.to_embedding[level](torch.cat(inputs, dim=1))
            quantized, indices, loss = self.quantizers[level](z, freeze_codebook=freeze)
            commitment = mean_or_zero((z.detach() - quantized.detach()).square())
            for found, value in zip(results, (quantized, indices, loss, commitment), strict=True):
                found.append(value)
            if level:
                inputs = [quantized] if condition is None else [condition, quantized]
                condition = self.conditioners[level - 1](torch.cat(inputs, dim=1))
        return results

    def _look_up(self, codes: Sequence[Tensor]) -> list[Tensor]:
        if len(codes) != len(self.quantizers):
            raise ValueError(f"codes must hold {len(self.quantizers)} levels, top first, got {len(codes)}")
        scales = self.downscales[:0:-1]  # of each map below the top with respect to the one above it
        wanted = [tuple(codes[0].shape)]
        for scale in scales:
            batch, *space = wanted[-1]
            wanted.append((batch, *(size * scale for size in space)))
        found = [tuple(level.shape) for level in codes]
        if codes[0].ndim != self.ndim + 1 or found != wanted:
            raise ValueError(
                f"codes have the shapes {found}, expected equal batches of maps in {self.ndim} dimensions, "
                f"top first, each below {' and '.join(map(str, scales))} times the size of the one above"
            )
        pairs = zip(quantizers(self), codes, strict=True)
        return [quantizer.get_output_from_indices(indices) for quantizer, indices in pairs]

    def _decode(self, quantized: Sequence[Tensor]) -> Tensor:
        """Parameters of p(x | z) from the quantized maps, top first."""
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
