"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from models.autoencoders.blocks import CONV, Decoder, Encoder, check_convolutions
from models.autoencoders.discrete import DiscreteAutoencoder, QuantizedLevel
from models.autoencoders.likelihoods import make_likelihood
from models.autoencoders.pixel_decoder import make_pixel_decoder
from models.autoencoders.quantizer import QuantizerArguments, make_quantizer
from models.pretrained import constructor_arguments
from vq_kernels.quantizers import Quantizer


class VQVAE(DiscreteAutoencoder):
    """Encoder, one level of codes, decoder; minimises (equation 3 of the paper)

        -log p(x | q) + alpha |sg[z] - q|^2 + beta |z - sg[q]|^2,      q = nearest code to z = encoder(x)

    Each term is a mean over elements. With ``codebook="ema"`` moving averages move the codes instead of
    the alpha term (appendix A.1); with ``codebook="gradient"`` the alpha term does.

    Shapes, for the defaults and 32 x 32 images: x ``[B, 3, 32, 32]``, z ``[B, 64, 8, 8]``, codes
    ``[B, 8, 8]``. ``ndim`` 1 or 3 takes ``[B, C, T]`` or ``[B, C, T, H, W]``.

    Args:
        in_channels: channels of the data.
        hidden, residual_layers, residual_hidden: width of the convolutions, number and width of the
            residual blocks on either side.
        downscale: 2, 4, 8, ...: data size over code map size, for each dimension.
        likelihood, variance, data_levels, scale: see :mod:`models.autoencoders.likelihoods`.
        decoder, decoder_width, decoder_layers: ``independent``, or ``autoregressive`` over pixels, with the
            width and number of layers of its PixelCNN; see :mod:`models.autoencoders.pixel_decoder`.
        relu_skip: for converted checkpoints, see :class:`models.autoencoders.blocks.ResidualBlock`.
        quantizer: by name, what :class:`models.autoencoders.quantizer.QuantizerArguments` lists:
            ``embedding_dim`` D and ``codebook_size`` K, ``heads`` codes a position, ``codebook``, the
            weights ``alpha`` of the codebook loss and ``beta`` of the commitment loss, ``decay``,
            ``kmeans_init``, ``dead_code_threshold``, ...
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        hidden: int = 128,
        residual_layers: int = 2,
        residual_hidden: int = 32,
        downscale: int = 4,
        ndim: int = 2,
        likelihood: str = "mse",
        variance: float = 1.0,
        data_levels: int = 256,
        scale: float = 1.0,
        relu_skip: bool = False,
        decoder: str = "independent",
        decoder_width: int = 32,
        decoder_layers: int = 3,
        **quantizer: Any,
    ) -> None:
        config = constructor_arguments(locals(), leave_out="quantizer")
        super().__init__()
        arguments = QuantizerArguments.of("VQVAE", quantizer)
        self.config = config | arguments.as_dict()
        check_convolutions(
            in_channels=in_channels,
            hidden=hidden,
            residual_layers=residual_layers,
            residual_hidden=residual_hidden,
            ndim=ndim,
        )
        self.in_channels, self.ndim = in_channels, ndim
        self.downscale, self.level_downscales = downscale, (downscale,)
        self.codebook_size, self.scale = arguments.codebook_size, scale
        self.likelihood = make_likelihood(likelihood, in_channels, variance, data_levels, scale)
        dim, shape = arguments.features, (hidden, residual_layers, residual_hidden)
        self.encoder = Encoder(in_channels, *shape, downscale, ndim, relu_skip)
        self.to_embedding = CONV[ndim](hidden, dim, 1)
        self.quantizer = make_quantizer(arguments)
        parameters = in_channels * self.likelihood.parameters_per_channel
        pixels = make_pixel_decoder(decoder, in_channels, parameters, decoder_width, decoder_layers, ndim)
        outputs = parameters if pixels is None else decoder_width
        self.decoder = Decoder(dim, outputs, *shape, downscale, ndim, relu_skip)
        self.pixels = pixels

    @property
    def level_quantizers(self) -> tuple[Quantizer, ...]:
        """The one quantizer."""
        return (self.quantizer,)

    def _quantize(self, x: Tensor, freeze: bool | None = None) -> list[QuantizedLevel]:
        z = self.to_embedding(self.encoder(self._in_units(x)))  # [B, D, *S / downscale]
        return [self._quantize_level(self.quantizer, z, freeze)]

    def _decode(self, quantized: Sequence[Tensor]) -> Tensor:
        parameters: Tensor = self.decoder(quantized[0])
        return parameters
