"""The whole layer: ours and vector-quantize-pytorch's, from the same state, doing the same work."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vq_kernels.quantizers import FusedVectorQuantizer

from .agreement import Disagreement, check_close, check_indices
from .peers import import_reason, settle_square_root
from .work import Case, make_inputs


class Outcome(NamedTuple):
    """What one call of a layer produced; ``grad`` is None without a backward pass."""

    quantized: Tensor  # [N, D]
    indices: Tensor  # [N]
    loss: Tensor  # one element
    grad: Tensor | None  # [N, D]
    codebook: Tensor  # [K, D] after the call


Run = Callable[[], tuple[Tensor, ...]]  # quantized, indices, loss and, of a step, the gradient of x


def peer_reason() -> str | None:
    """Why vector-quantize-pytorch cannot be measured here, None if it can."""
    return import_reason("vector_quantize_pytorch")


def our_layer(case: Case, device: str = "cpu", backend: str | None = None) -> nn.Module:
    """Our layer with its defaults (EMA, rotation trick), its codes those of the case's inputs."""
    layer = FusedVectorQuantizer(dim=case.d, codebook_size=case.k, backend=backend)
    return _with_codes(layer, case).to(device)


def their_layer(case: Case, device: str = "cpu") -> nn.Module:
    """vector-quantize-pytorch's layer with its defaults, which are the same, from the same state."""
    module = importlib.import_module("vector_quantize_pytorch")
    settle_square_root()
    return _with_codes(module.VectorQuantize(dim=case.d, codebook_size=case.k), case).to(device)


def _with_codes(layer: nn.Module, case: Case) -> nn.Module:
    state = layer.state_dict()
    for name in ("embed", "embed_avg"):
        state[f"_codebook.{name}"] = make_inputs(case)[1].float()[None].clone()
    layer.load_state_dict(state)
    return layer


def forward_only(layer: nn.Module, x: Tensor) -> Run:
    """Inference: no gradient, no update. x ``[1, N, D]``."""
    layer.eval()

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(layer(x)[:3])

    return run


def training_step(layer: nn.Module, x: Tensor) -> Run:
    """Forward with EMA update, then backward from the quantized rows and the loss."""
    layer.train()
    grad = make_gradient(x)
    of_loss = torch.ones((), device=x.device)  # made once: its kernel is not the layer's

    def run() -> tuple[Tensor, ...]:
        quantized, indices, loss = layer(x)[:3]
        torch.autograd.backward((quantized, loss), (grad, of_loss.expand(loss.shape)))
        of_x, x.grad = x.grad, None
        if of_x is None:
            raise Disagreement("the layer left x without a gradient")
        return quantized, indices, loss, of_x

    return run


def make_gradient(x: Tensor) -> Tensor:
    """A gradient of the quantized rows, reproducible, of the size that a mean over them would have."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(x.shape, generator=generator) / x.numel()
    return noise.to(x.device, x.dtype)


def outcome(layer: nn.Module, x: Tensor, train: bool) -> Outcome:
    """Call the layer once on x ``[1, N, D]`` and gather everything that must agree."""
    rows = x.detach().clone().requires_grad_(train)
    quantized, indices, loss, *grad = (training_step if train else forward_only)(layer, rows)()
    codebook = layer._codebook.embed[0]  # type: ignore[index, union-attr]
    return Outcome(quantized[0], indices[0], loss, grad[0][0] if train else None, codebook)


def check_layers(ours: nn.Module, theirs: nn.Module, x: Tensor, *, train: bool) -> int:
    """Run copies of both layers once; the number of rows whose codes are ties that fell apart.

    Gradients and quantized rows are compared where the codes are the same, and codes where none of
    their rows is such a tie.

    Raises:
        Disagreement: anything else differs beyond float32 rounding.
    """
    before = ours._codebook.embed[0].clone()  # type: ignore[index, union-attr]
    mine, other = (outcome(copy.deepcopy(layer), x, train) for layer in (ours, theirs))
    differing = check_indices(x[0].detach(), before, mine.indices, other.indices)
    same = mine.indices == other.indices
    looser = 1.0 if x.dtype == torch.float32 else 2.0**8  # results are rounded to x's dtype
    check_close("quantized", mine.quantized[same], other.quantized[same], relative=1e-4 * looser)
    if mine.grad is not None and other.grad is not None:
        check_close("loss", mine.loss, other.loss, relative=1e-4)  # in eval the peer's is 0
        check_close("gradient of x", mine.grad[same], other.grad[same], relative=1e-3 * min(looser, 2.0**5))
        touched = torch.cat([mine.indices[~same], other.indices[~same]])
        whole = torch.ones(len(before), dtype=torch.bool, device=x.device)
        whole[touched] = False
        check_close("codebook", mine.codebook[whole], other.codebook[whole], relative=1e-4)
    return differing
