"""How the next code is drawn from its logits: temperature, top-k, top-p (nucleus), and the draw itself."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_kernels.checks import check_integer, check_number


def check_filters(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise TypeError or ValueError naming the first argument that is out of range."""
    check_number(temperature=temperature)
    if temperature == 0:
        raise ValueError("temperature is 0; accepted: a finite number above 0 (top_k=1 is greedy)")
    if top_k is not None:
        check_integer(1, top_k=top_k)
    if top_p is not None:
        check_number(0, 1, top_p=top_p)
        if top_p == 0:
            raise ValueError("top_p is 0; accepted: a number above 0, up to 1, or None")


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


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One code for each row of ``[B, K]`` logits, int64 ``[B]``, by the Gumbel-max trick.

    The noise has the logits' shape and nothing else in common with them, so what a generator gives does not
    depend on the other rows, and no value is read back from the device.
    """
    noise = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float32)
    # rand may give 0, whose Gumbel value -inf would tie a code that is kept with those that are not.
    gumbel = -(-noise.clamp_min(2.0**-25).log()).log()
    return (logits + gumbel).argmax(dim=-1)
