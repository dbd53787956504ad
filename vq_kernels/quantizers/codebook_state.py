"""The codebooks' tensors: names, shapes and initial values are those of vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import broadcast_from_first
from ..functional import gather_codes
from ..tensor_checks import check_integer_tensor
from .sharded import is_sharded, write_part


class CodebookState(nn.Module):
    """``num_codebooks`` codebooks of K codes of D numbers, float32 whatever the module is cast to.

    Buffers: ``initted`` [] bool, ``cluster_size`` [H, K], ``embed_avg`` [H, K, D]; ``embed`` [H, K, D] is
    a buffer, or a Parameter if ``learnable``.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor
    _sharded_embed: Tensor | None = None  # between forward passes, under fully_shard

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
        self._follows_rank0 = False
        embed = torch.zeros(num_codebooks, codebook_size, dim, dtype=torch.float32)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            if unit_length:
                embed = F.normalize(embed, dim=-1, eps=1e-6)
        self.register_buffer("initted", torch.tensor(not kmeans_init, dtype=torch.bool))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size, dtype=torch.float32))
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

    def lookup(self, indices: Tensor, heads: int) -> Tensor:
        """Codes ``[..., heads * D]`` of indices ``[...]`` (several heads: ``[..., heads]``); zeros for -1."""
        check_integer_tensor("indices", indices)
        if heads > 1 and (indices.ndim == 0 or indices.shape[-1] != heads):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; accepted: [..., {heads}], one per head"
            )
        codebooks = self.codes()  # [H, K, D]
        left_out = indices == -1
        valid_indices = torch.where(left_out, 0, indices)
        if codebooks.shape[0] == 1:
            codes = gather_codes(codebooks[0], valid_indices)
        else:
            pairs = zip(codebooks, valid_indices.unbind(-1), strict=True)
            codes = torch.stack([gather_codes(codebook, of_head) for codebook, of_head in pairs], -2)
        codes = torch.where(left_out.unsqueeze(-1), 0.0, codes)
        return codes.flatten(-2) if heads > 1 else codes

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "embed" and is_sharded(value):
            # fully_shard changes the parameter for a whole copy in forward, and back after it.
            object.__setattr__(self, "_sharded_embed", value)
        super().__setattr__(name, value)

    @torch.no_grad()
    def write_codes_(self, codes: Tensor) -> None:
        """Let ``embed`` be ``codes`` [H, K, D], also in the parts that ``fully_shard`` keeps of it."""
        if not is_sharded(self.embed):
            self.embed.copy_(codes)
        if self._sharded_embed is not None:
            write_part(self._sharded_embed, codes)

    @torch.no_grad()
    def set_codes_(self, codes: Tensor) -> None:
        """Start again from ``codes`` [H, K, D], each as if it had taken one row so far."""
        codes = codes.to(self.embed_avg)
        codes = F.normalize(codes, dim=-1, eps=1e-6) if self.unit_length else codes
        self.write_codes_(codes)
        self.embed_avg.copy_(codes)
        self.cluster_size.fill_(1.0)
        self.initted.fill_(True)
        self.needs_init = False

    @torch.no_grad()
    def broadcast_from_rank0_(self) -> None:
        """Take over rank 0's state, once, before the first synchronised step.

        Ranks may have been seeded differently, or rank 0 alone may have loaded a checkpoint; from
        then on they stay equal by themselves. All ranks must call this together.
        """
        if self._follows_rank0 or torch.compiler.is_compiling():
            return
        initted = self.initted.float()
        broadcast_from_first([initted, self.cluster_size, self.embed_avg, self.embed])
        self.initted.copy_(initted > 0)
        self.needs_init = not bool(self.initted)
        self._follows_rank0 = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy or an unpickled module meets ranks that may hold something else.
        self._follows_rank0 = False

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
