"""What every autoencoder is to training, evaluation and the commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models.autoencoders.likelihoods import Likelihood
from models.autoencoders.pixel_decoder import PixelDecoder
from models.losses import at_least_float32
from models.pretrained import Pretrained

if TYPE_CHECKING:
    from models.data import ImageData
    from vq_kernels.quantizers import Quantizer


class AutoencoderOutput(NamedTuple):
    """Result of ``model(x)``."""

    # x's shape, the mean of p(x | z); of an autoregressive decoder that of each pixel given z and the true
    # pixels before it
    reconstruction: Tensor
    loss: Tensor  # [], to be minimised
    terms: dict[str, Tensor]  # the parts of the loss, [] each, detached
    codes: tuple[Tensor, ...]  # of each level, top first, as encode gives them; empty without codes


class Autoencoder(Pretrained, ABC):
    """A model between images and latents, with or without codes.

    For example, a model of 32 x 32 colour images takes x ``[8, 3, 32, 32]`` in -0.5..0.5 and returns a
    reconstruction ``[8, 3, 32, 32]`` and a loss ``[]``.
    """

    ndim: int = 2  # axes of the data beside the channels
    in_channels: int
    scale: float = 1.0  # the unit in which the convolutions see the data
    likelihood: Likelihood
    pixels: PixelDecoder | None  # the last part of an autoregressive decoder
    # Weight of the KL term in training, for models that have one: raised from 0, so that the latent is not
    # given up at the start.
    kl_warmup_factor: float | Tensor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.pixels = None

    @abstractmethod
    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Reconstruction and loss of images ``[B, C, *S]``, floats in -0.5..0.5."""

    @abstractmethod
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean image of the latent of ``x``, without noise: x's shape."""

    @abstractmethod
    def nats(self, x: Tensor, output: AutoencoderOutput) -> dict[str, Tensor]:
        """The parts of an upper bound on -log p(x) in nats an image, ``[B]`` each, by name.

        output: of forward for the same ``x``.
        """

    @abstractmethod
    def accepted_size(self, size: Sequence[int]) -> str | None:
        """Which sizes of data the model takes, in words; None if it takes ``size``, (H, W) of images."""

    @property
    def level_quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizer of each level of codes, top (coarsest) first; none without codes."""
        return ()

    def clean_reconstruction(self, x: Tensor, output: AutoencoderOutput) -> Tensor:
        """What :meth:`reconstruct` gives for ``x``, taken from forward's output where that is the same."""
        return output.reconstruction if self.pixels is None else self.reconstruct(x)

    def likely_reconstruction(self, x: Tensor) -> Tensor:
        """The mean image of a latent as the bound on -log p(x) draws it; codes are not drawn.

        Of an autoregressive decoder the mean of each pixel given the true ones before it, as in the bound.
        """
        return self.reconstruct(x)

    def update_codebooks(self) -> None:
        """Apply the statistics that the quantizers have gathered since the last call, where any wait."""
        for quantizer in self.level_quantizers:
            quantizer.update_codebooks()

    def check_size(self, data: ImageData) -> None:
        """ValueError naming the remedy unless the model takes data of ``data``'s kind, size and channels."""
        kind = data.kind
        levels = getattr(self.likelihood, "levels", kind.levels)  # one of your own may not say
        if (self.ndim, levels) != (kind.ndim, kind.levels):
            raise ValueError(
                f"{data.name} holds {kind.items}, of {kind.ndim} axes and {kind.levels} levels; accepted: "
                f"data of {self.ndim} axes and {levels} levels, which this model was built for"
            )
        accepted = self.accepted_size(data.size)
        if accepted is not None:
            name, size = data.kind.size_setting, "x".join(map(str, data.size))
            raise ValueError(
                f"the {name} of {data.name} is {size}; accepted: {accepted}; give a {name} (--{name}) or "
                f"other downscales"
            )
        if self.in_channels != data.channels:
            raise ValueError(
                f"channels of {data.name} is {data.channels}; accepted: {self.in_channels}, those of the "
                f"model; give channels (--channels {self.in_channels})"
            )

    def _in_units(self, x: Tensor) -> Tensor:
        """``x`` in units of :attr:`scale`, as the first convolution sees it."""
        return x if self.scale == 1 else x / self.scale

    def _likelihood_parameters(self, decoded: Tensor, x: Tensor) -> Tensor:
        """Parameters of the likelihood of ``x`` from what the convolutions of the decoder make of z."""
        return at_least_float32(decoded if self.pixels is None else self.pixels(decoded, x))

    def _mean_image(self, decoded: Tensor) -> Tensor:
        """The image that z stands for, from what the convolutions of the decoder make of z."""
        if self.pixels is None:
            return self.likelihood.mean(decoded)
        return self.pixels.decode(decoded, self.likelihood)

    def _check_dtype(self, x: Tensor) -> None:
        """TypeError unless ``x`` is of floats that the convolutions take."""
        dtype = next(self.parameters()).dtype
        if not x.is_floating_point():
            raise TypeError(
                f"x is of dtype {x.dtype}; accepted: floats in -0.5..0.5 (models.data.to_float makes them of "
                f"bytes)"
            )
        # Between the shorter ones autocast translates.
        if (x.dtype == torch.float64) != (dtype == torch.float64):
            raise TypeError(f"x is of dtype {x.dtype}; accepted: that of the weights, as x.to({dtype})")
