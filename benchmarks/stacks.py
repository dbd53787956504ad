"""``python -m benchmarks.stacks``: few rows, and residual stacks of audio codecs, against the codecs' search.

Single searches first, then whole encoders of a stack: at each stage the nearest code of the residual, which
is then taken off. The other side is the search of transformers' EnCodec (an expanded square, three N x K
arrays) or Mimi (``torch.cdist``), written out here. Milliseconds on ``--threads`` threads, on one thread of
the process's own time, so that other programs hardly matter; ours "of" theirs and the ratio of pairs in turn,
once with codebooks as tensors and once prepared (``vq_kernels.prepare_codebook``). With ``--device cuda``
both sides are CUDA graphs, as streams are encoded where a launch takes longer than its kernel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import vq_kernels as vq

from .measure import Budget, Call, Pairs, measure_pairs, processor_timer, timer_for
from .peers import settle_square_root

Search = Callable[[Tensor, Tensor], Tensor]


def expanded_square(x: Tensor, codebook: Tensor) -> Tensor:
    """As ``EncodecEuclideanCodebook.quantize`` of transformers has it."""
    embed = codebook.t()
    scaled = x.pow(2).sum(1, keepdim=True)
    return (-(scaled - 2 * x @ embed + embed.pow(2).sum(0, keepdim=True))).max(dim=-1).indices


def distances(x: Tensor, codebook: Tensor) -> Tensor:
    """As ``MimiEuclideanCodebook.quantize`` of transformers has it."""
    return torch.cdist(x[None], codebook[None], p=2)[0].argmin(dim=-1)


@dataclass(frozen=True)
class Stack:
    """S stages of K codes of D numbers, and the search that they come with."""

    name: str
    stages: int
    k: int
    d: int
    stock: Search
    rows: tuple[int, ...]


STACKS = (
    Stack("EnCodec", 32, 1024, 128, expanded_square, (1, 8, 750)),
    Stack("Mimi", 32, 2048, 256, distances, (1, 8, 125, 2000)),
)
SEARCHES = tuple(
    Stack(name, 1, k, d, stock, (1, 4, 8, 16, 32, 64, 128))
    for name, k, d, stock in (
        *(("Mimi", 2048, 256, distances), ("EnCodec", 1024, 128, expanded_square)),
        *(("SNAC", 4096, 8, expanded_square), ("LlamaGen", 16384, 8, expanded_square)),
    )
)


def draw(stack: Stack, rows: int, device: str) -> tuple[Tensor, list[Tensor]]:
    """Rows ``[N, D]`` and a codebook a stage, of the size of what the stages before leave."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, stack.d, generator=generator)
    codebooks = [torch.randn(stack.k, stack.d, generator=generator) * 0.9**s for s in range(stack.stages)]
    return x.to(device), [codebook.to(device) for codebook in codebooks]


def encode(
    x: Tensor, codebooks: Sequence[Tensor], searched: Sequence[Tensor | vq.PreparedCodebook], search: Search
) -> Tensor:
    """Codes ``[S, N]``; ``searched`` is what ``search`` takes in the place of each codebook."""
    residual, found = x, []
    for codebook, target in zip(codebooks, searched, strict=True):
        indices = search(residual, target)  # type: ignore[arg-type]
        residual = residual - F.embedding(indices, codebook)
        found.append(indices)
    return torch.stack(found)


class Graph:
    """A call recorded as a CUDA graph; replaying it is the call, with the tensors that it holds."""

    def __init__(self, call: Call) -> None:
        self._call, self._graph = call, torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph):
            call()

    def __call__(self) -> None:
        self._graph.replay()


def compare(stack: Stack, rows: int, budget: Budget, device: str = "cpu") -> tuple[Pairs, Pairs, int]:
    """Pairs with tensors and with prepared codebooks, and how many codes the stock search has otherwise."""
    x, codebooks = draw(stack, rows, device)
    prepared = [vq.prepare_codebook(codebook) for codebook in codebooks]
    ours = encode(x, codebooks, codebooks, vq.nearest_code)
    assert torch.equal(ours, encode(x, codebooks, prepared, vq.nearest_code))
    differ = int((ours != encode(x, codebooks, codebooks, stack.stock)).sum())
    assert differ <= 0.01 * ours.numel(), f"{differ} codes differ"

    def encoder(searched: Sequence[Tensor | vq.PreparedCodebook], search: Search) -> Call:
        def call() -> Tensor:
            return encode(x, codebooks, searched, search)

        return Graph(call) if device == "cuda" else call

    stock = encoder(codebooks, stack.stock)
    timer = timer_for(device) if device == "cuda" else processor_timer()
    tensors, packed = (
        measure_pairs(encoder(searched, vq.nearest_code), stock, timer=timer, budget=budget)
        for searched in (codebooks, prepared)
    )
    return tensors, packed, differ


def lines(stacks: Sequence[Stack], budget: Budget, device: str = "cpu") -> Iterator[str]:
    """The table, line by line."""
    for stack in stacks:
        for rows in stack.rows:
            tensors, packed, differ = compare(stack, rows, budget, device)
            yield (
                f"{stack.name:8} {stack.stages:2} x {stack.k:5} x {stack.d:3}, {rows:4} rows: "
                f"tensors {tensors}  prepared {packed}  {differ} codes differ"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, each line as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for the pairs of a cell (0.5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no CUDA GPU; accepted here: cpu")
    torch.set_num_threads(given.threads)
    settle_square_root()
    with torch.no_grad():
        for line in lines((*SEARCHES, *STACKS), Budget(seconds=given.seconds), given.device):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
