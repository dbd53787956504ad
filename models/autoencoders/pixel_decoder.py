"""A decoder that is autoregressive over pixels: a small PixelCNN that also sees the latents.

An ordinary decoder makes the pixels independent of each other given the latents z. This one factorises

    p(x | z) = prod_t p(x_t | x_<t, z)        over the pixels t in raster order,

(the lossy VAE of arXiv:1611.02731, the PixelVAE of arXiv:1611.05013), so that it can model x without z: the
decoder under which a VAE gives its latent up (posterior collapse), and a VQ-VAE does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders.likelihoods import Likelihood
from models.layers.gated import GatedLayers, GatedSteps
from models.settings import setting
from vq_kernels.checks import check_choice, check_integer

DECODERS = ("independent", "autoregressive")
FIRST_KERNEL_SIZE, KERNEL_SIZE = 7, 5


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The settings of a run that say how its decoder makes pixels, and on what scale errors are."""

    settings_title: ClassVar[str] = "decoder"

    decoder: str = setting(
        "independent", "independent, or autoregressive: a PixelCNN over the pixels that also sees the latents"
    )
    decoder_width: int = setting(32, "channels of that PixelCNN", decoder=("autoregressive",))
    decoder_layers: int = setting(3, "layers of that PixelCNN", decoder=("autoregressive",))

    variance: float | None = setting(
        None,
        "mse: what the squared error is divided by, gaussian: where it starts; by default that of the data",
    )

    def check_decoder(self) -> None:
        """TypeError or ValueError for the first setting with which no decoder can be built."""
        check_choice(DECODERS, decoder=self.decoder)
        check_integer(1, decoder_width=self.decoder_width, decoder_layers=self.decoder_layers)
        if self.variance is not None and not self.variance > 0:
            raise ValueError(f"variance is {self.variance}; accepted: a number above 0")

    def decoder_settings(self, variance_of_data: float) -> dict[str, Any]:
        """What the models' constructors take of these settings, by name."""
        own = {field.name: getattr(self, field.name) for field in fields(DecoderSettings)}
        return own | {"variance": variance_of_data if self.variance is None else self.variance}


class PixelDecoder(nn.Module):
    """From features of z at every pixel, and the pixels before it, to the parameters of a pixel's likelihood.

    Shapes, for 8 x 8 digits with the ``categorical`` likelihood: features ``[B, 32, 8, 8]``, x
    ``[B, 1, 8, 8]``, parameters ``[B, 256, 8, 8]``. The channels of a pixel are independent of each other
    given what was before the pixel.

    Args:
        channels: C of the images. parameters: channels of the likelihood's parameters, for all C together.
        width: channels of ``features`` and of both stacks. layers: gated layers.

    The features enter every gate, and once more beside the sum of the layers, so that z is as easy to use as
    it is for a decoder of independent pixels.
    """

    def __init__(self, channels: int, parameters: int, width: int, layers: int) -> None:
        super().__init__()
        self.pixel = nn.Linear(channels, width)
        self.layers = GatedLayers(
            width, layers, first_kernel_size=FIRST_KERNEL_SIZE, kernel_size=KERNEL_SIZE, upper_channels=width
        )
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, parameters)

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """Parameters ``[B, P, H, W]`` of each pixel of ``x`` given z and the pixels of ``x`` before it."""
        pixels = self.pixel(x.movedim(1, -1)).movedim(-1, 1)  # [B, width, H, W]
        skips: Tensor = self.layers(pixels, None, features)
        return self._likelihood_parameters((skips + features).movedim(1, -1)).movedim(-1, 1)

    @torch.no_grad()
    def decode(self, features: Tensor, likelihood: Likelihood) -> Tensor:
        """An image of z alone, ``[B, C, H, W]``: each pixel the mean given those decoded before it.

        Without noise and without a gradient; one pixel at a time.
        """
        batch, _, height, width = features.shape
        steps = GatedSteps(self.layers, batch, width, None, features)
        pixels: list[Tensor] = []  # [B, C] each
        for here in features.flatten(2).unbind(-1):  # [B, width]
            skips = steps(self.pixel(pixels[-1]) if pixels else None)
            parameters = self._likelihood_parameters(skips + here)[:, :, None, None]  # [B, P, 1, 1]
            pixels.append(likelihood.mean(parameters)[:, :, 0, 0].clamp(-0.5, 0.5))
        return torch.stack(pixels, dim=-1).unflatten(-1, (height, width))

    def _likelihood_parameters(self, mixed: Tensor) -> Tensor:
        parameters: Tensor = self.output(F.relu(self.hidden(F.relu(mixed))))
        return parameters


def make_pixel_decoder(
    decoder: str, channels: int, parameters: int, width: int, layers: int, ndim: int = 2
) -> PixelDecoder | None:
    """What follows the convolutions of the decoder called ``decoder``; None for an ``independent`` one.

    channels, parameters, width and layers are those of :class:`PixelDecoder`; ndim, the spatial dimensions of
    the data, is 2 for an autoregressive one. Raises TypeError or ValueError.
    """
    DecoderSettings(decoder=decoder, decoder_width=width, decoder_layers=layers).check_decoder()
    if decoder == "independent":
        return None
    if ndim != 2:
        raise ValueError(f"ndim is {ndim}; accepted: 2 with decoder 'autoregressive'")
    return PixelDecoder(channels, parameters, width, layers)
