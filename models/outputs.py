"""What every autoencoder's forward returns, and what a model with codes offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class AutoencoderOutput(NamedTuple):
    """Result of ``model(x)`` for VAE, VQVAE and VQVAE2."""

    reconstruction: Tensor  # x's shape, the mean of p(x | z)
    loss: Tensor  # [], to be minimised
    terms: dict[str, Tensor]  # the parts of the loss, [] each, detached
    codes: tuple[Tensor, ...]  # [B, *S_level] int64, top level first; empty for the VAE


class CodeModel(Protocol):
    """A model of discrete codes. Levels are ordered from the top (coarsest) down to the bottom."""

    codebook_size: int

    def encode(self, x: Tensor) -> tuple[Tensor, ...]: ...

    def decode_codes(self, codes: Sequence[Tensor]) -> Tensor: ...

    def decoder_log_prob(self, x: Tensor, codes: Sequence[Tensor]) -> Tensor: ...

    def code_shapes(self, spatial: Sequence[int]) -> tuple[tuple[int, ...], ...]: ...


def perplexity_and_usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(entropy)`` of the code frequencies and the share of codes used at all.

    counts: ``[K]``, of any dtype. Returns two ``[]`` float32 tensors; no code counted gives NaN and 0.
    """
    probability = counts.double() / counts.sum()
    entropy = torch.special.entr(probability).sum()
    return entropy.exp().float(), (counts > 0).float().mean()
