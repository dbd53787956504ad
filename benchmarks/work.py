"""What is measured: shapes, data and how much arithmetic and memory traffic a call costs at least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One problem: N rows of D numbers against K codes.

    ``data`` is ``"random"`` (both normal: the hardest to certify, every row far from every code) or
    ``"trained"`` (rows scattered around codes, as a trained codebook sees them).
    """

    n: int
    d: int
    k: int
    data: str = "random"
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> str:
        """``N=65536 D=64 K=512``, with data and dtype where they are not the usual ones."""
        extra = [self.data] if self.data != "random" else []
        if self.dtype != torch.float32:
            extra.append(str(self.dtype).removeprefix("torch."))
        return " ".join([f"N={self.n} D={self.d} K={self.k}", *extra])

    @cached_property
    def element_size(self) -> int:
        return torch.empty((), dtype=self.dtype).element_size()

    @property
    def search_flops(self) -> float:
        """Multiplications and additions of N K dot products."""
        return 2.0 * self.n * self.k * self.d

    @property
    def search_bytes(self) -> float:
        """Read x and the codebook once, write int64 indices."""
        return float((self.n + self.k) * self.d * self.element_size + 8 * self.n)

    @property
    def forward_bytes(self) -> float:
        """A search, and the quantized rows written."""
        return self.search_bytes + self.n * self.d * self.element_size

    @property
    def step_bytes(self) -> float:
        """Forward, then x, quantized's gradient and indices read and the gradient written, then the EMA.

        The EMA reads and writes codebook and embed_avg and reads the sums, all float32.
        """
        backward = 3.0 * self.n * self.d * self.element_size + 8 * self.n
        return self.forward_bytes + backward + 5.0 * self.k * self.d * 4


def make_inputs(case: Case, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """x ``[N, D]`` of the case's dtype and codebook ``[K, D]`` of the same, reproducible."""
    if case.data not in ("random", "trained"):
        raise ValueError(f"data is {case.data!r}; accepted: 'random', 'trained'")
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(case.k, case.d, generator=generator)
    x = torch.randn(case.n, case.d, generator=generator)
    if case.data == "trained":
        x = codebook[torch.randint(case.k, (case.n,), generator=generator)] + 0.4 * x
    return x.to(device, case.dtype), codebook.to(device, case.dtype)
