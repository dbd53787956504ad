"""The side of the layer that is not forward: its codes, what they are used for, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import is_synchronized
from ..functional import gather_codes
from . import metrics
from .checkpoints import find_problems
from .codebook import Codebook


class CodebookAccess(nn.Module):
    """Base class of the layer: lookups, metrics, manual updates, loading."""

    _codebook: Codebook
    heads: int
    separate_codebook_per_head: bool
    channel_last: bool
    sync_codebook: bool | None
    project_out: nn.Module
    has_projections: bool
    last_counts: Tensor

    @property
    def codebook(self) -> Tensor:
        """The codes ``[K, D]``, or ``[heads, K, D]`` with ``separate_codebook_per_head``.

        Setting it starts the averages again from the new codes and counts as initialisation.
        """
        codes = self._codebook.codes()
        return codes if self.separate_codebook_per_head else codes[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        shape = self.codebook.shape
        if not isinstance(codes, Tensor) or not codes.is_floating_point():
            raise TypeError(f"codebook is set to {type(codes).__name__}; accepted: a floating-point tensor")
        if codes.shape != shape:
            raise ValueError(f"codebook is set to shape {tuple(codes.shape)}; accepted: {tuple(shape)}")
        self._codebook.set_codes_(codes if self.separate_codebook_per_head else codes.unsqueeze(0))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of ``indices`` (as forward returns them), before the projection; zeros for index -1.

        Returns:
            ``[..., heads * D]``, or channel-first ``[B, heads * D, *S]`` if the layer is.
        """
        codes = self._lookup(indices)
        return codes if self.channel_last or codes.ndim < 3 else codes.movedim(-1, 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What forward gives in eval for ``indices``: the codes after the projection; zeros for index -1."""
        codes = self._lookup(indices)
        if self.has_projections:
            codes = self.project_out(codes)
            kept = indices >= 0
            if self.heads > 1:
                kept = kept.any(-1)
            codes = torch.where(kept.unsqueeze(-1), codes, 0.0)
        return codes if self.channel_last or codes.ndim < 3 else codes.movedim(-1, 1)

    def _lookup(self, indices: Tensor) -> Tensor:
        """Codes ``[..., heads * D]``."""
        if not isinstance(indices, Tensor) or indices.dtype.is_floating_point or indices.dtype == torch.bool:
            raise TypeError(f"indices is {_kind(indices)}; accepted: an integer tensor")
        if self.heads > 1 and (indices.ndim == 0 or indices.shape[-1] != self.heads):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; accepted: [..., {self.heads}], one per head"
            )
        codebooks = self._codebook.codes()  # [H, K, D]
        left_out = indices == -1
        found = torch.where(left_out, 0, indices)
        if codebooks.shape[0] == 1:
            codes = gather_codes(codebooks[0], found)
        else:
            codes = torch.stack(
                [gather_codes(c, i) for c, i in zip(codebooks, found.unbind(-1), strict=True)], -2
            )
        codes = torch.where(left_out.unsqueeze(-1), 0.0, codes)
        return codes.flatten(-2) if self.heads > 1 else codes

    def update_ema(self) -> None:
        """Apply what forward gathered since the last call, as one step; needs ``manual_ema_update=True``."""
        if not self._codebook.manual_ema_update:
            raise RuntimeError("manual_ema_update is False, forward updates the codebook; accepted: True")
        self.last_counts = self._codebook.apply_gathered_(is_synchronized(self.sync_codebook))

    @property
    def perplexity(self) -> Tensor:
        """``exp(-sum p log(p + 1e-10))`` of the last training batch: a scalar that stays on the device."""
        return metrics.perplexity(self.last_counts)

    @property
    def usage(self) -> Tensor:
        """Share of the codes used in the last training batch: a scalar that stays on the device."""
        return metrics.usage(self.last_counts)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``Module.load_state_dict``, except that after an error nothing has been loaded.

        Raises:
            RuntimeError: naming each key that does not fit, its shape and what is accepted.
        """
        self._refuse_misfits(state_dict, "", complete=strict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._refuse_misfits(state_dict, prefix, complete=False)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _refuse_misfits(self, state_dict: Mapping[str, Any], prefix: str, *, complete: bool) -> None:
        problems = find_problems(self.state_dict(keep_vars=True), state_dict, prefix, complete=complete)
        if problems:
            raise RuntimeError(f"nothing was loaded into {type(self).__name__}: " + "; ".join(problems))


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
