"""``python -m benchmarks.training``: a step of a model as `train` does it, and as plain torch does.

Plain is NCHW strides, float32, and Adam as ``torch.optim.Adam(parameters)`` has it: the same model, layer
included, without what :mod:`models.training` adds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import VQVAE, TransformerPrior
from models.data import to_float
from models.runs.device import find_device, has_bfloat16
from models.training.memory_format import channels_last, weights_channels_last_
from models.training.optimizer import fused_adam

from .measure import Budget, measure_pairs, timer_for


@dataclass(frozen=True)
class Way:
    """How a step is done: ``trained`` with the strides and the optimizer of `train`, else plain."""

    trained: bool = True
    bfloat16: bool = False
    compiled: bool = False

    def step(self, model: torch.nn.Module, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A step of ``model``, whose loss ``call`` gives; the step returns the loss."""
        parameters = list(model.parameters())
        optimizer = fused_adam(parameters, 3e-4) if self.trained else torch.optim.Adam(parameters, lr=3e-4)
        device = parameters[0].device.type
        loss_of = torch.compile(call, dynamic=False) if self.compiled else call

        def step() -> Tensor:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step


PLAIN = Way(trained=False)
WAYS = {
    "plain": PLAIN,
    "train": Way(),
    "train, bfloat16": Way(bfloat16=True),
    "train, compiled": Way(compiled=True),
    "train, compiled, bfloat16": Way(compiled=True, bfloat16=True),
}


def autoencoder_step(way: Way, device: str, batch: int = 32) -> Callable[[], Tensor]:
    """A VQ-VAE with the defaults of `train` on 32 x 32 colour images, in bytes as a loader gives them."""
    torch.manual_seed(0)
    model = VQVAE(3).to(device)
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
    if way.trained:
        weights_channels_last_(model)
        return way.step(model, lambda: model(to_float(channels_last(images))).loss)
    return way.step(model, lambda: model(to_float(images)).loss)


def prior_step(way: Way, device: str, dropout: float, batch: int = 64) -> Callable[[], Tensor]:
    """A Transformer over maps of 16 x 16 codes under 8 x 8: width 128, 4 layers, K = 512."""
    torch.manual_seed(0)
    prior = TransformerPrior(
        512, 128, shape=(16, 16), layers=4, heads=4, dropout=dropout, upper_codebook_size=512
    ).to(device)
    codes = torch.randint(0, 512, (batch, 16, 16), device=device)
    upper = torch.randint(0, 512, (batch, 8, 8), device=device)
    return way.step(prior, lambda: -prior(codes, upper=upper).mean() / 256)


def check_step(step: Callable[[], Tensor], plain: Callable[[], Tensor], tolerance: float) -> None:
    """AssertionError unless the losses of the first three steps of both agree to ``tolerance``, relative."""
    for number in range(3):
        ours, theirs = float(step()), float(plain())
        if abs(ours - theirs) > tolerance * abs(theirs):
            raise AssertionError(f"loss {ours} in step {number}, plain {theirs}")


def compare(device: str, budget: Budget, compiled: bool) -> Iterator[str]:
    """A line for each way: its time, and how many times that plain torch takes in pairs measured in turn."""
    timer = timer_for(device)
    halves = device != "cpu" or has_bfloat16()
    yield f"{'training step':44} {'ms':>8}  ratio (quartiles)"
    for name, way in WAYS.items():
        if way == PLAIN or (way.compiled and not compiled) or (way.bfloat16 and not halves):
            continue
        step, plain = autoencoder_step(way, device), autoencoder_step(PLAIN, device)
        check_step(step, plain, 2e-2 if way.bfloat16 else 1e-3)
        pairs = measure_pairs(step, plain, timer=timer, budget=budget)
        low, high = pairs.ratio.low, pairs.ratio.high
        yield (
            f"{'VQVAE, ' + name + ' / plain':44} {pairs.ours_s.median * 1e3:8.1f}  "
            f"{pairs.ratio.median:.2f} times as fast ({low:.2f} to {high:.2f})"
        )
    for half in (False, True) if halves else (False,):
        way = Way(bfloat16=half)
        with_dropout, without = prior_step(way, device, 0.2), prior_step(way, device, 0.0)
        pairs = measure_pairs(without, with_dropout, timer=timer, budget=budget)
        low, high = pairs.ratio.low, pairs.ratio.high
        name = "Transformer, dropout / none" + (", bfloat16" if half else "")
        yield (
            f"{name:44} {pairs.peer_s.median * 1e3:8.1f}  "
            f"{pairs.ratio.median:.2f} times the time ({low:.2f} to {high:.2f})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, each line as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="for the pairs of a line (15)")
    parser.add_argument("--compiled", action="store_true", help="also compiled steps, which takes minutes")
    given = parser.parse_args(arguments)
    budget = Budget(seconds=given.seconds, max_pairs=60)
    for line in compare(find_device("auto"), budget, given.compiled):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
