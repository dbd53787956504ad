"""The codebooks' tensors: names, shapes and initial values are those of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import broadcast_from_first


class CodebookState(nn.Module):
    """``num_codebooks`` codebooks of K codes of D numbers, float32 whatever the module is cast to.

    Buffers: ``initted`` [] bool, ``cluster_size`` [H, K], ``embed_avg`` [H, K, D]; ``embed`` [H, K, D] is
    a buffer, or a Parameter if ``learnable``.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        *,
        learnable: bool,
        unit_length: bool,
        kmeans_init: bool,
    ) -> None:
        super().__init__()
        self.learnable = learnable
        self.unit_length = unit_length
        # The host's copy of ``not initted``: forward may branch on it without asking the device.
        self.needs_init = kmeans_init
        self._follows_first_rank = False
        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            if unit_length:
                embed = F.normalize(embed, dim=-1, eps=1e-6)
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)

    def codes(self) -> Tensor:
        """``[H, K, D]`` to search in: learnable codes on the sphere are brought to unit length each time."""
        if self.learnable and self.unit_length:
            return F.normalize(self.embed, dim=-1, eps=1e-6)
        return self.embed

    @torch.no_grad()
    def set_codes_(self, codes: Tensor) -> None:
        """Start again from ``codes`` [H, K, D], each as if it had taken one row so far."""
        self.embed.copy_(F.normalize(codes, dim=-1, eps=1e-6) if self.unit_length else codes)
        self.embed_avg.copy_(self.embed)
        self.cluster_size.fill_(1.0)
        self.initted.fill_(True)
        self.needs_init = False

    @torch.no_grad()
    def follow_first_rank_(self) -> None:
        """Take over rank 0's state, once, before the first synchronised step.

        Ranks may have been seeded differently, or rank 0 alone may have loaded a checkpoint; from
        then on they stay equal by themselves. All ranks must call this together.
        """
        if self._follows_first_rank or torch.compiler.is_compiling():
            return
        initted = self.initted.float()
        broadcast_from_first([initted, self.cluster_size, self.embed_avg, self.embed])
        self.initted.copy_(initted > 0)
        self.needs_init = not bool(self.initted)
        self._follows_first_rank = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy or an unpickled module meets ranks that may hold something else.
        self._follows_first_rank = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the module to other devices but not to other dtypes: ``half()`` would ruin the averages."""

        def keep_dtype(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.initted.device.type != "meta":
            self.needs_init = not bool(self.initted)
