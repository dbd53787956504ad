"""How the next code is drawn from its logits: temperature, top-k, top-p (nucleus), and the draw itself."""

from __future__ import annotations

import hashlib
import numbers
import sys

import torch
from torch import Tensor

from vq_kernels.checks import check_integer


def check_filters(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise TypeError or ValueError naming the first argument that is out of range."""
    _check_above_zero(
        "temperature", temperature, sys.float_info.max, "a finite number above 0 (top_k=1 is greedy)"
    )
    if top_k is not None:
        check_integer(1, top_k=top_k)
    if top_p is not None:
        _check_above_zero("top_p", top_p, 1, "a number above 0, up to 1, or None")


def _check_above_zero(name: str, value: object, highest: float, accepted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; accepted: {accepted}")
    if not 0 < float(value) <= highest:
        raise ValueError(f"{name} is {float(value):g}; accepted: {accepted}")


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Divides by the temperature, then keeps the ``top_k`` largest, then the nucleus of mass ``top_p``.

    logits ``[B, K]`` of any float dtype; gives float32 ``[B, K]`` with -inf for every code left out. Exactly
    ``min(top_k, K)`` codes are kept, also where logits are equal. The nucleus (Holtzman et al., 2020) is the
    smallest set of most probable codes whose probability, after the other filters, reaches ``top_p``.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        largest = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, largest.indices, largest.values)
    if top_p is not None and top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        mass = ranked.softmax(dim=-1)
        before = mass.cumsum(dim=-1) - mass  # of the codes ranked ahead: 0 for the first, which always stays
        ranked = ranked.masked_fill(before >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter(-1, order, ranked)
    return logits


def draw(
    logits: Tensor, generator: torch.Generator | None = None, fine: torch.Generator | None = None
) -> Tensor:
    """One code for each row of ``[B, K]`` logits, int64 ``[B]``, by the Gumbel-max trick.

    The noise has the logits' shape and nothing else in common with them, so what a generator gives does not
    depend on the other rows, and no value is read back from the device. fine: of the noise's lower half, see
    :func:`fine_generator`, by default one for this call.
    """
    fine = fine_generator(generator, logits.device) if fine is None else fine
    noise, lower = (
        torch.rand(logits.shape, generator=source, device=logits.device, dtype=torch.float32)
        for source in (generator, fine)
    )
    gumbel = -exponential(noise, lower).log()
    return (logits + gumbel).argmax(dim=-1)


def exponential(noise: Tensor, fine: Tensor) -> Tensor:
    """Exponentially distributed values from two uniform ones in steps of 2^-24, as ``torch.rand`` has them.

    A code of probability p is drawn where its value is below about p, and one uniform value has no step below
    2^-24: codes rarer than 1e-7 would hardly ever be drawn. The second one fills the steps of the first, so
    that the smallest value is 2^-49. None is 0 or infinite.
    """
    step = 2.0**-24
    inside = fine + step / 2  # above 0, and below 1 but for rounding
    # Uniform in (0, 1), and 1 less that: each exact where it is small.
    below = (noise / step + inside) * step
    above = (1 / step - noise / step - inside).clamp_min(step / 2) * step
    return torch.where(noise < 0.5, -below.log(), -torch.log1p(-above))


def fine_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """The generator of the noise's lower half, determined by the state of ``generator``, which stays as it
    is.

    One of its own, so that the upper half is what it was before there was a lower one.
    """
    if generator is not None:
        state = generator.get_state()
    elif device.type == "cpu":
        state = torch.get_rng_state()
    else:
        state = getattr(torch, device.type).get_rng_state(device)
    seed = hashlib.sha256(state.cpu().numpy().tobytes()).digest()[:8]
    return torch.Generator(device).manual_seed(int.from_bytes(seed, "big") >> 1)
