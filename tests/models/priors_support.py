"""Small priors of each kind, maps for them, and the sampler that re-runs the network for every code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.priors import AutoregressivePrior, PixelCNN, PixelSNAIL, TransformerPrior
from models.priors.filters import draw, filter_logits

LARGEST = {1: (16,), 2: (16, 16), 3: (4, 4, 4)}


def pixelcnn(codebook_size: int, axes: int = 2, **arguments: Any) -> PixelCNN:
    sizes = {"layers": 4, "kernel_size": 3, "first_kernel_size": 5, "upper_blocks": 1}
    return PixelCNN(codebook_size, 8, **{**sizes, **arguments})


def pixelsnail(codebook_size: int, axes: int = 2, **arguments: Any) -> PixelSNAIL:
    sizes = {"blocks": 2, "res_blocks": 2, "res_channels": 6, "heads": 2, "kernel_size": 3}
    upper = {"upper_blocks": 1, "upper_channels": 4}
    return PixelSNAIL(codebook_size, 8, **{**sizes, **upper, "out_res_blocks": 1, **arguments})


def pixelsnail_without_attention(codebook_size: int, axes: int = 2, **arguments: Any) -> PixelSNAIL:
    return pixelsnail(codebook_size, axes, attention=False, res_blocks=3, **arguments)


def transformer(codebook_size: int, axes: int = 2, **arguments: Any) -> TransformerPrior:
    sizes = {"layers": 2, "heads": 2, "upper_layers": 1, "shape": LARGEST[axes]}
    return TransformerPrior(codebook_size, 16, **{**sizes, **arguments})


KINDS = {
    "pixelcnn": pixelcnn,
    "pixelsnail": pixelsnail,
    "pixelsnail-no-attention": pixelsnail_without_attention,
    "transformer": transformer,
}
kinds = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Case:
    """A map shape, and whether labels and an upper level are given."""

    sizes: tuple[int, ...]
    classes: int | None = None
    upper: tuple[int, ...] | None = None

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.sizes))]
        parts += ["class"] if self.classes else []
        parts += ["under-" + "x".join(map(str, self.upper))] if self.upper else []
        return "-".join(parts)


CASES = [
    Case((5, 5)),
    Case((3, 7), classes=3),
    Case((7, 4), upper=(4, 2)),
    Case((6, 4), classes=3, upper=(3, 2)),
    Case((1, 6)),
    Case((6, 1), classes=3),
    Case((9,)),
    Case((9,), classes=3, upper=(3,)),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
K, UPPER_K = 5, 4


def build(kind: str, case: Case, device: torch.device, **arguments: Any) -> AutoregressivePrior:
    """A prior in evaluation mode whose every parameter is random, so that each can be seen in the output."""
    prior = KINDS[kind](
        K,
        len(case.sizes),
        num_classes=case.classes,
        upper_codebook_size=UPPER_K if case.upper else None,
        **arguments,
    )
    return randomise(prior).to(device).eval()


def randomise(prior: AutoregressivePrior, seed: int = 0) -> AutoregressivePrior:
    """Parameters of a size that keeps activations of order one, so that float32 rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in prior.named_parameters():
        # Of a weight-normalised layer original0 is the length of each row, a vector with trailing ones.
        length = "original0" in name
        matrix = parameter.ndim > 1 and not length
        fan_in = math.prod(parameter.shape[1:]) if matrix and "position" not in name else 1
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
            if length or ("norm.weight" in name):
                parameter.abs_().mul_(0.2).add_(0.3)
    return prior


def inputs(case: Case, device: torch.device, batch: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """Codes, and the conditions by their argument names."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(K, (batch, *case.sizes), generator=generator).to(device)
    conditions = {}
    if case.classes:
        conditions["labels"] = torch.arange(batch, device=device) % case.classes
    if case.upper:
        upper = torch.randint(UPPER_K, (batch, *case.upper), generator=generator)
        conditions["upper"] = upper.to(device)
    return codes, conditions


@torch.no_grad()
def naive_sample(
    prior: AutoregressivePrior,
    shape: tuple[int, ...],
    conditions: dict[str, Tensor],
    generator: torch.Generator | None = None,
    **filters: Any,
) -> Tensor:
    """The definition of sampling: all logits again for every code."""
    codes = torch.zeros(shape, dtype=torch.int64, device=prior.device)
    flat = codes.flatten(1)
    for position in range(flat.shape[1]):
        logits = prior.logits(flat.view(shape), **conditions).flatten(2)[:, :, position]
        flat[:, position] = draw(filter_logits(logits, **filters), generator)
    return flat.view(shape)


def in_place_modules(prior: nn.Module) -> list[str]:
    return [name for name, module in prior.named_modules() if getattr(module, "inplace", False)]
