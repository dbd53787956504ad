"""What every quantizer offers, so that a model can hold any of them without asking for its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..devices import moved_or_zero
from ..exportable import exportable
from . import metrics
from .checkpoints import find_problems


@exportable
class QuantizerOutput(NamedTuple):
    """What a quantizer returns; unpacks as ``quantized, indices, loss``."""

    quantized: Tensor  # x's shape and dtype (with projections: the dtype that they give)
    # int64; x's shape without its channels, then one axis where a position has more than one code
    # (heads or groups first, stages last); -1 where masked or left out
    indices: Tensor
    loss: Tensor  # [] float32 (float64 for float64 x), to be added to the model's own


class Quantizer(nn.Module):
    """A bottleneck that gives every position of its input one code, or several.

    Q is the number of codes of a position: 1 for a single codebook, the number of heads, groups or
    stages otherwise. For example, a quantizer of images with 4 stages of 512 codes takes x
    ``[8, 64, 16, 16]`` and returns quantized ``[8, 64, 16, 16]``, indices ``[8, 16, 16, 4]`` and loss
    ``[]``; its ``codebook_sizes`` are ``(512, 512, 512, 512)`` and its ``last_counts`` ``[4, 512]``.

    State: codebooks and their averages are float32 buffers or parameters, whatever the default dtype
    or ``.to(dtype)`` says, and they alone make up ``state_dict``. Counts, statistics that wait for
    :meth:`update_codebooks` and random counters are not saved.
    """

    # Rows per code of the last training batch, [Q, K] int64 on the device; codes of a position that
    # share one codebook are counted together. None where K is too large to count.
    last_counts: Tensor | None

    # The dtype that the module was made with or cast to: that of codes looked up by their indices.
    codes_dtype: torch.dtype

    def __init__(self) -> None:
        super().__init__()
        self.codes_dtype = torch.get_default_dtype()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        freeze_codebook: bool | None = None,
    ) -> QuantizerOutput:
        """Quantise x and, in training, let the codebooks learn from it.

        Args:
            x: ``[..., dim]``, or channel-first ``[B, dim, *S]`` where the layer is.
            mask: bool, x's shape without its channels, True where a row counts.
            lens: ``[B]`` integers instead of a mask: the first ``lens[b]`` rows count.
            freeze_codebook: overrides the layer's own setting for this call.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The number of codes that each of the Q indices of a position can name.

        For codes without a table it is the product of their levels.
        """
        raise NotImplementedError(f"{type(self).__name__} has no codebook_sizes")

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of ``indices`` (as forward returns them), before any projection; zeros for index -1."""
        raise NotImplementedError(f"{type(self).__name__} has no get_codes_from_indices")

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What forward gives in eval for ``indices``; zeros for index -1."""
        raise NotImplementedError(f"{type(self).__name__} has no get_output_from_indices")

    def flatten_indices(self, indices: Tensor) -> Tensor:
        """Indices as forward returns them, as ``[..., Q]``: the one form in which they are stored."""
        return indices.unsqueeze(-1) if len(self.codebook_sizes) == 1 else indices

    def unflatten_indices(self, indices: Tensor) -> Tensor:
        """The inverse of :meth:`flatten_indices`."""
        return indices.squeeze(-1) if len(self.codebook_sizes) == 1 else indices

    def update_codebooks(self) -> None:
        """Apply the statistics that forward has gathered; does nothing where none wait."""

    @property
    def perplexity(self) -> Tensor | None:
        """``exp(-sum p log(p + 1e-10))`` of ``last_counts``, the mean over Q: a scalar on the device."""
        return None if self.last_counts is None else metrics.perplexity(self.last_counts)

    @property
    def usage(self) -> Tensor | None:
        """Share of the codes used in the last training batch, the mean over Q: a scalar on the device."""
        return None if self.last_counts is None else metrics.usage(self.last_counts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.last_counts is not None:  # not through fn: to_empty would make garbage of them
            device = fn(self.last_counts.new_empty(0)).device
            self.last_counts = moved_or_zero(self.last_counts, device)
        self.codes_dtype = fn(torch.empty(0, dtype=self.codes_dtype, device="cpu")).dtype
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``Module.load_state_dict``, except that after an error nothing has been loaded.

        Raises:
            RuntimeError: naming each key that does not fit, its shape and what is accepted.
        """
        self._refuse_misfits(state_dict, "", complete=strict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        self._refuse_misfits(state_dict, prefix, complete=False)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers", False) and self.last_counts is not None:
            # The state's tensors become the layer's own, and take it from the meta device to theirs.
            device = next((t.device for k, t in state_dict.items() if k.startswith(prefix)), None)
            self.last_counts = moved_or_zero(self.last_counts, device or self.last_counts.device)

    def _refuse_misfits(self, state_dict: Mapping[str, Any], prefix: str, *, complete: bool) -> None:
        problems = find_problems(self.state_dict(keep_vars=True), state_dict, prefix, complete=complete)
        if problems:
            raise RuntimeError(f"nothing was loaded into {type(self).__name__}: " + "; ".join(problems))
