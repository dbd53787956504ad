"""Variational autoencoder with a Gaussian latent (Kingma and Welling 2014, arXiv:1312.6114)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoders.base import Autoencoder, AutoencoderOutput
from models.autoencoders.blocks import CONV, CONV_TRANSPOSED, check_sizes
from models.autoencoders.likelihoods import make_likelihood
from models.autoencoders.pixel_decoder import make_pixel_decoder
from models.losses import at_least_float32, mean_or_zero
from models.pretrained import constructor_arguments
from vq_kernels.checks import check_integer, check_number


class VAE(Autoencoder):
    """Four convolutions, a Gaussian latent, four transposed convolutions; minimises

        -log p(x | z) + beta KL(N(mean, deviation^2) || N(0, 1)),      z = mean + deviation * noise

    per data element, so that with a proper likelihood (all but ``mse``) and beta 1 the loss is the
    negative ELBO in nats per dimension.

    Shapes, for the defaults: x ``[B, 3, 32, 32]``, mean and log-variance of the latent ``[B, 128]`` each,
    reconstruction ``[B, 3, 32, 32]``. The data are of the size given; with a size of one number or three they
    are sounds ``[B, C, T]`` or volumes ``[B, C, D, H, W]``.

    A convolution has stride 2 (kernel 4) while all sizes are even and above 1, else stride 1 (kernel 3), so
    that 8 x 8, 28 x 28 and 64 x 64 images all pass through four of them.

    Args:
        in_channels, image_size: of the data; image_size is a number for square images, or (height, width),
            (length,) or (depth, height, width).
        latent_dim: L. channels: widths of the four convolutions.
        beta: weight of the KL term. likelihood, variance, data_levels, scale: see
            :mod:`models.autoencoders.likelihoods`.
        decoder, decoder_width, decoder_layers: ``independent``, or ``autoregressive`` over pixels, with the
            width and number of layers of its PixelCNN; see :mod:`models.autoencoders.pixel_decoder`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int | Sequence[int] = 32,
        *,
        latent_dim: int = 128,
        channels: Sequence[int] = (32, 64, 128, 256),
        beta: float = 1.0,
        likelihood: str = "gaussian",
        variance: float = 0.05,
        data_levels: int = 256,
        scale: float = 1.0,
        decoder: str = "independent",
        decoder_width: int = 32,
        decoder_layers: int = 3,
    ) -> None:
        config = constructor_arguments(locals())
        super().__init__()
        self.config = config
        check_integer(1, in_channels=in_channels, latent_dim=latent_dim)
        check_number(beta=beta)
        check_sizes("channels", channels)
        pair = (image_size, image_size) if isinstance(image_size, int) else image_size
        sizes = self.image_size = check_sizes("image_size", pair, 1, 3)
        self.ndim = len(sizes)
        self.in_channels, self.latent_dim, self.beta, self.scale = in_channels, latent_dim, beta, scale
        self.likelihood = make_likelihood(likelihood, in_channels, variance, data_levels, scale)
        parameters = in_channels * self.likelihood.parameters_per_channel
        pixels = make_pixel_decoder(
            decoder, in_channels, parameters, decoder_width, decoder_layers, self.ndim
        )
        outputs = parameters if pixels is None else decoder_width
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for before, after in zip([in_channels, *channels], channels, strict=False):
            stride = 1 if any(size % 2 for size in sizes) else 2
            sizes = tuple(size // stride for size in sizes)
            kernel = 2 + stride if stride == 2 else 3
            down += [CONV[self.ndim](before, after, kernel, stride, padding=1), nn.ReLU()]
            back = outputs if before == in_channels and not up else before
            up = [CONV_TRANSPOSED[self.ndim](after, back, kernel, stride, padding=1), nn.ReLU(), *up]
        self.smallest = (channels[-1], *sizes)
        flat = math.prod(self.smallest)
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * latent_dim))
        self.from_latent = nn.Linear(latent_dim, flat)
        self.decoder = nn.Sequential(*up[:-1])
        self.apply(initialize)
        self.pixels = pixels

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """x: ``[B, C, *S]`` float in -0.5..0.5. The noise comes from torch's global generator.

        The loss of an empty batch is 0.
        """
        mean, log_variance = self.encode(x)
        parameters = self._likelihood_parameters(self._decode(self.draw(mean, log_variance)), x)
        reconstruction_loss = self.likelihood.loss(parameters, x)
        kl = mean_or_zero(kl_divergence(mean, log_variance)) / math.prod(x.shape[1:])
        terms = {"reconstruction": reconstruction_loss.detach(), "kl": kl.detach()}
        factor = self.kl_warmup_factor if self.training else 1.0
        loss = reconstruction_loss + self.beta * factor * kl
        return AutoencoderOutput(self.likelihood.mean(parameters), loss, terms, ())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x): ``[B, L]`` each."""
        if tuple(x.shape[1:]) != (self.in_channels, *self.image_size):
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; accepted: "
                f"[B, {', '.join(map(str, (self.in_channels, *self.image_size)))}]"
            )
        self._check_dtype(x)
        mean, log_variance = at_least_float32(self.encoder(self._in_units(x))).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Mean image ``[B, C, *S]`` of latents ``[B, L]``."""
        return self._mean_image(self._decode(z))

    @torch.no_grad()
    def sample(
        self, count: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean images ``[count, C, *S]`` of latents drawn from the prior, and the latents ``[count, L]``.

        temperature: deviation of the latents, 1 in the prior itself. generator: on the model's device.
        """
        check_integer(1, count=count)
        check_number(temperature=temperature)
        where = self.from_latent.weight
        z = torch.randn(count, self.latent_dim, generator=generator, device=where.device, dtype=where.dtype)
        return self.decode(z * temperature), z * temperature

    @torch.no_grad()
    def interpolate(self, first: Tensor, second: Tensor, steps: int = 10) -> Tensor:
        """Mean images on the way from each of ``first`` to its partner in ``second``: ``[B, steps, C, *S]``.

        The latents lie on a straight line, evenly spaced, from the mean latent of the one image ``[C, *S]``
        to that of the other; the first and the last step are the images' reconstructions.
        """
        check_integer(2, steps=steps)
        start, end = self.encode(first)[0], self.encode(second)[0]  # [B, L]
        shares = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype).view(1, -1, 1)
        z = torch.lerp(start.unsqueeze(1), end.unsqueeze(1), shares)  # [B, steps, L]
        return self.decode(z.flatten(0, 1)).unflatten(0, (-1, steps))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean image of the mean latent of ``x``: x's shape."""
        return self.decode(self.encode(x)[0])

    def clean_reconstruction(self, x: Tensor, output: AutoencoderOutput) -> Tensor:
        """The mean image of the mean latent; forward's is of a latent with noise."""
        return self.reconstruct(x)

    def likely_reconstruction(self, x: Tensor) -> Tensor:
        """The mean image of a latent drawn from q(z | x), with noise from torch's global generator."""
        decoded = self._decode(self.draw(*self.encode(x)))
        return self.likelihood.mean(self._likelihood_parameters(decoded, x))

    def nats(self, x: Tensor, output: AutoencoderOutput) -> dict[str, Tensor]:
        """``decoder``, -log p(x | z) of one sample of the latent, and ``kl``: the negative ELBO."""
        log_likelihood, negative_kl = self.elbo(x)
        return {"decoder": -log_likelihood, "kl": -negative_kl}

    def accepted_size(self, size: Sequence[int]) -> str | None:
        return None if tuple(size) == self.image_size else "x".join(map(str, self.image_size))

    def elbo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One-sample estimate of E log p(x | z), and -KL: ``[B]`` each, in nats an image."""
        mean, log_variance = self.encode(x)
        log_prob = self.decoder_log_prob(x, self.draw(mean, log_variance))
        return log_prob.flatten(1).sum(1), -kl_divergence(mean, log_variance)

    def decoder_log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) of every element in nats, for latents z ``[B, L]``: x's shape."""
        return self.likelihood.log_prob(self._likelihood_parameters(self._decode(z), x), x)

    @staticmethod
    def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
        """A latent of N(mean, exp(log_variance)), ``[B, L]``; noise from torch's global generator."""
        return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)

    def _decode(self, z: Tensor) -> Tensor:
        start = F.relu(self.from_latent(z)).view(-1, *self.smallest)
        return at_least_float32(self.decoder(start))


def initialize(layer: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852): the signal keeps its size through ten layers of ReLU.

    With torch's default it shrinks so far that the noise of the latent drowns it, and training gives the
    latent up before it carries anything.
    """
    if isinstance(layer, nn.Linear):
        inputs = layer.in_features
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        inputs = layer.in_channels * math.prod(layer.kernel_size)
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # An output pixel sees only every stride-th row and column of the kernel.
        inputs = layer.in_channels * math.prod(layer.kernel_size) // math.prod(layer.stride)
    else:
        return
    nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of ``[B, L]`` parameters: ``[B]`` nats, float32 at least."""
    return kl_of_dimensions(mean, log_variance).sum(1)


def kl_of_dimensions(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The same for each dimension of the latent: ``[B, L]``.

    In 16 bits exp(v) - 1 - v would cancel to little.
    """
    mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
