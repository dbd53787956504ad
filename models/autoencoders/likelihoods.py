"""What a decoder's output means: the distribution p(x | z) of the data given the code.

Data are levels k = 0, ..., L - 1 held as ``x = k / (L - 1) - 0.5``: L is 256 for bytes, as of images, and
65,536 for sounds. A likelihood turns the decoder's output ``[B, parameters * C, *S]`` into a training loss
per element, the mean image, and the log-probability of each level, which sums to one over the levels and is
what bits per dimension are computed from.

The decoder's outputs are means in units of ``scale``, in which the encoder sees the data too: 1 for images,
and for sounds, most of which are quiet, what makes them as loud as images are bright.

- ``mse``: Gaussian of fixed variance; the loss is the squared error over that variance.
- ``gaussian``: Gaussian whose variance, one a channel, is learnt (sigma-VAE, arXiv:2006.13202).
- ``logistic``: discretised logistic with a mean and a scale for each element (arXiv:1701.05517).
- ``categorical``: 256-way softmax for each element (arXiv:1601.06759), of bytes only.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses import log_softmax_at, mean_or_zero
from vq_kernels.checks import check_choice, check_integer

LEVELS = 256  # of bytes
STEP = 1.0 / (LEVELS - 1)  # distance between two neighbouring ones


def to_levels(x: Tensor, levels: int = LEVELS) -> Tensor:
    """``[-0.5, 0.5]`` floats to the nearest level, int64 from 0 to below ``levels``."""
    return ((x + 0.5) * (levels - 1)).round().clamp(0, levels - 1).long()


class Likelihood(Protocol):
    """The interface of the classes below; ``parameters_per_channel`` widens the decoder's last layer."""

    parameters_per_channel: int
    levels: int

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor: ...

    def mean(self, parameters: Tensor) -> Tensor: ...

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor: ...


class Gaussian(nn.Module):
    """Gaussian with the decoder's output as mean, one variance a channel, learnt or fixed.

    ``log_prob`` integrates the density over each level's cell (the outer two reach to infinity), in
    float64. The loss is ``(x - mean)^2 / variance`` for a fixed variance and the negative log-density,
    in nats, for a learnt one. The fixed variance only scales the loss: :meth:`calibrate` gives
    ``log_prob`` the variance that is most likely for a trained decoder, its mean squared error. Until
    then, and ``calibrated`` (saved with the weights) says so, its values mean nothing.
    """

    parameters_per_channel = 1
    log_variance: Tensor  # [C]
    calibrated: Tensor  # [] 0 or 1 (a number, for averages of models), only with a fixed variance

    def __init__(
        self, channels: int, variance: float, learnt: bool, levels: int = LEVELS, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.levels, self.scale = levels, scale
        if not variance > 0:
            raise ValueError(f"variance is {variance}; accepted: a number above 0")
        start = torch.full((channels,), math.log(variance))
        if learnt:
            self.log_variance = nn.Parameter(start)
        else:
            self.register_buffer("log_variance", start)
            self.register_buffer("calibrated", torch.zeros(()))
        self.learnt, self.variance = learnt, variance

    def calibrate(self, squared_error: Tensor) -> None:
        """Set a fixed variance to the mean squared error of each channel, ``[C]``, on held-out data."""
        if not self.learnt:
            self.log_variance.copy_(squared_error.clamp(min=1e-10).log())
            self.calibrated.fill_(1.0)

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Mean over elements: ``[]``."""
        if not self.learnt:
            return mean_or_zero((x - self.mean(parameters)).square()) / self.variance
        log_variance = _per_channel(self.log_variance, x)
        scaled = (x - self.mean(parameters)).square() * torch.exp(-log_variance)
        return 0.5 * mean_or_zero(scaled + log_variance + math.log(2 * math.pi))

    def mean(self, parameters: Tensor) -> Tensor:
        return _in_range(parameters, self.scale)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each element's level in nats: x's shape, float64."""
        deviation = torch.exp(0.5 * _per_channel(self.log_variance, x).double())
        step = 1 / (self.levels - 1)
        levels = to_levels(x, self.levels)
        centre = levels.double() * step - 0.5 - self.mean(parameters.double())
        lower = (centre - step / 2) / deviation
        upper = (centre + step / 2) / deviation
        lower = lower.masked_fill(levels == 0, -torch.inf)
        upper = upper.masked_fill(levels == self.levels - 1, torch.inf)
        # Mirror cells right of the mean to the left, where log_ndtr loses no digits.
        flip = lower > 0
        lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return high + torch.log(-torch.expm1(low - high))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Files of before the flag: a variance that is not the constructor's has been calibrated.
        stored_variance, flag = state_dict.get(prefix + "log_variance"), prefix + "calibrated"
        if not self.learnt and stored_variance is not None and flag not in state_dict:
            initial = torch.full_like(stored_variance, math.log(self.variance))
            state_dict[flag] = (stored_variance != initial).any()
        super()._load_from_state_dict(state_dict, prefix, *rest)


class DiscretizedLogistic(nn.Module):
    """Logistic distribution integrated over each level's cell; mean and log-scale from the decoder.

    With ``s`` the sigmoid, ``s(b) - s(a) = s(b) s(-a) (1 - exp(a - b))``: the logarithm of each factor is
    exact to rounding, so no cell needs a special case in its tail.
    """

    parameters_per_channel = 2

    def __init__(self, levels: int = LEVELS, scale: float = 1.0) -> None:
        super().__init__()
        self.levels, self.step, self.scale = levels, 1 / (levels - 1), scale
        self.smallest_log_scale = -7.0 + math.log(self.step / STEP)  # a quarter of a level

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Negative log-probability in nats, mean over elements: ``[]``."""
        return -mean_or_zero(self.log_prob(parameters, x))

    def mean(self, parameters: Tensor) -> Tensor:
        return _in_range(parameters.chunk(2, dim=1)[0], self.scale)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each element's level in nats: x's shape."""
        mean, log_scale = self.mean(parameters.float()), parameters.float().chunk(2, dim=1)[1]
        # An untrained decoder gives about 0: start with a scale of a twentieth of the range.
        log_scale = (log_scale - 3.0 + math.log(self.scale)).clamp(min=self.smallest_log_scale)
        levels = to_levels(x, self.levels)
        centre = levels.to(mean.dtype) * self.step - 0.5 - mean
        precision = torch.exp(-log_scale)
        width = self.step * precision
        below, above = centre * precision - width / 2, centre * precision + width / 2
        up_to_upper = F.logsigmoid(above).masked_fill(levels == self.levels - 1, 0.0)
        from_lower = F.logsigmoid(-below).masked_fill(levels == 0, 0.0)
        inner = torch.log(-torch.expm1(-width))
        return up_to_upper + from_lower + inner.masked_fill((levels == 0) | (levels == self.levels - 1), 0.0)


class Categorical(nn.Module):
    """256 logits an element. The mean image is the expected level, which minimises squared error."""

    parameters_per_channel = LEVELS
    levels = LEVELS

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy in nats, mean over elements: ``[]``."""
        return -mean_or_zero(self.log_prob(parameters, x))

    def mean(self, parameters: Tensor) -> Tensor:
        probability = _split_levels(parameters.float()).softmax(dim=1)
        levels = torch.arange(LEVELS, device=parameters.device, dtype=probability.dtype) * STEP - 0.5
        return torch.einsum("bl...,l->b...", probability, levels)

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each element's level in nats: x's shape."""
        return log_softmax_at(_split_levels(parameters.float()), to_levels(x))


KINDS = ("mse", "gaussian", "logistic", "categorical")


def make_likelihood(
    kind: str, channels: int, variance: float = 1.0, levels: int = LEVELS, scale: float = 1.0
) -> Likelihood:
    """The likelihood called ``kind``, one of ``mse``, ``gaussian``, ``logistic`` and ``categorical``.

    ``variance`` is the fixed variance of ``mse`` and where ``gaussian`` starts. ``levels`` is how many an
    element of the data has: 256, or 65,536 of sounds. ``scale`` is the unit of the decoder's outputs; the
    levels of ``categorical`` have none. Raises TypeError or ValueError.
    """
    check_choice(KINDS if levels == LEVELS else KINDS[:-1], likelihood=kind)
    check_integer(2, levels=levels)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; accepted: a number above 0")
    if kind in ("mse", "gaussian"):
        return cast(
            Likelihood, Gaussian(channels, variance, learnt=kind == "gaussian", levels=levels, scale=scale)
        )
    return cast(Likelihood, DiscretizedLogistic(levels, scale) if kind == "logistic" else Categorical())


def _in_range(outputs: Tensor, scale: float) -> Tensor:
    """Outputs of a decoder, in units of ``scale``, in the range of the data."""
    return outputs if scale == 1 else outputs * scale


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))  # [1, C, 1, ...]


def _split_levels(parameters: Tensor) -> Tensor:
    batch, width, *space = parameters.shape
    return parameters.view(batch, width // LEVELS, LEVELS, *space).movedim(2, 1)  # [B, 256, C, *S]
