"""What a decoder's output means: the distribution p(x | z) of the data given the code.

Data are levels k = 0, ..., 255 held as ``x = k / 255 - 0.5``. A likelihood turns the decoder's output
``[B, parameters * C, *S]`` into a training loss per element, the mean image, and the log-probability of
each level, which sums to one over the 256 levels and is what bits per dimension are computed from.

- ``mse``: Gaussian of fixed variance; the loss is the squared error over that variance.
- ``gaussian``: Gaussian whose variance, one a channel, is learnt (sigma-VAE, arXiv:2006.13202).
- ``logistic``: discretised logistic with a mean and a scale for each element (arXiv:1701.05517).
- ``categorical``: 256-way softmax for each element (arXiv:1601.06759).
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses import log_softmax_at, mean_or_zero
from vq_kernels.checks import check_choice

LEVELS = 256
STEP = 1.0 / (LEVELS - 1)  # distance between two neighbouring levels


def to_levels(x: Tensor) -> Tensor:
    """``[-0.5, 0.5]`` floats to the nearest level, int64 in 0..255."""
    return ((x + 0.5) * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()


class Likelihood(Protocol):
    """The interface of the classes below; ``parameters_per_channel`` widens the decoder's last layer."""

    parameters_per_channel: int

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

    def __init__(self, channels: int, variance: float, learnt: bool) -> None:
        super().__init__()
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
            return mean_or_zero((x - parameters).square()) / self.variance
        log_variance = _per_channel(self.log_variance, x)
        scaled = (x - parameters).square() * torch.exp(-log_variance)
        return 0.5 * mean_or_zero(scaled + log_variance + math.log(2 * math.pi))

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each element's level in nats: x's shape, float64."""
        deviation = torch.exp(0.5 * _per_channel(self.log_variance, x).double())
        levels = to_levels(x)
        centre = levels.double() * STEP - 0.5 - parameters.double()
        lower = (centre - STEP / 2) / deviation
        upper = (centre + STEP / 2) / deviation
        lower = lower.masked_fill(levels == 0, -torch.inf)
        upper = upper.masked_fill(levels == LEVELS - 1, torch.inf)
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
    smallest_log_scale = -7.0

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Negative log-probability in nats, mean over elements: ``[]``."""
        return -mean_or_zero(self.log_prob(parameters, x))

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, dim=1)[0]

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each element's level in nats: x's shape."""
        mean, log_scale = parameters.float().chunk(2, dim=1)
        # An untrained decoder gives about 0: start with a scale of a twentieth of the range.
        log_scale = (log_scale - 3.0).clamp(min=self.smallest_log_scale)
        levels = to_levels(x)
        centre = levels.to(mean.dtype) * STEP - 0.5 - mean
        precision = torch.exp(-log_scale)
        width = STEP * precision
        below, above = centre * precision - width / 2, centre * precision + width / 2
        up_to_upper = F.logsigmoid(above).masked_fill(levels == LEVELS - 1, 0.0)
        from_lower = F.logsigmoid(-below).masked_fill(levels == 0, 0.0)
        inner = torch.log(-torch.expm1(-width))
        return up_to_upper + from_lower + inner.masked_fill((levels == 0) | (levels == LEVELS - 1), 0.0)


class Categorical(nn.Module):
    """256 logits an element. The mean image is the expected level, which minimises squared error."""

    parameters_per_channel = LEVELS

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


def make_likelihood(kind: str, channels: int, variance: float = 1.0) -> Likelihood:
    """The likelihood called ``kind``, one of ``mse``, ``gaussian``, ``logistic`` and ``categorical``.

    ``variance`` is the fixed variance of ``mse`` and where ``gaussian`` starts. Raises ValueError.
    """
    check_choice(KINDS, likelihood=kind)
    if kind in ("mse", "gaussian"):
        return cast(Likelihood, Gaussian(channels, variance, learnt=kind == "gaussian"))
    return cast(Likelihood, DiscretizedLogistic() if kind == "logistic" else Categorical())


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))  # [1, C, 1, ...]


def _split_levels(parameters: Tensor) -> Tensor:
    batch, width, *space = parameters.shape
    return parameters.view(batch, width // LEVELS, LEVELS, *space).movedim(2, 1)  # [B, 256, C, *S]
