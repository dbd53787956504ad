"""The codebooks' tensors: names, shapes and initial values are those of vector-quantize-pytorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import is_capturing, is_host_readable
from ..distributed import WORLD, ProcessGroup, broadcast_from_first
from ..functional import gather_codes
from ..operators.gather import opaque_copy
from ..operators.registry import is_plain
from ..tensor_checks import check_index_range, check_integer_tensor
from .sharded import is_sharded, write_part


class CodebookState(nn.Module):
    """``num_codebooks`` codebooks of K codes of D numbers, float32 whatever the module is cast to.

    Buffers: ``initted`` [], ``cluster_size`` [H, K], ``embed_avg`` [H, K, D]; ``embed`` [H, K, D] is a
    buffer, or a Parameter if ``learnable``. ``initted`` is 0 until there are codes. It is a number, so that
    averages of models can take it in; a bool in the states of vector-quantize-pytorch, and loaded from one.
    """

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor
    # The buffer initted, its version and its value when the host last read it.
    _initted_seen: tuple[Tensor, int, bool]
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
        self.kmeans_init = kmeans_init
        self.group = WORLD  # the ranks that share the codebook
        self._follows_rank0 = False
        # Whether codes of length 0 were loaded, which cosine similarity must not take.
        self.has_zero_codes = False
        # A module is made on the default device, as any other; its calls follow their tensors.
        device, shape = torch.get_default_device(), (num_codebooks, codebook_size)
        embed = torch.zeros((*shape, dim), dtype=torch.float32, device=device)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            if unit_length:
                embed = F.normalize(embed, dim=-1, eps=1e-6)
        initted = torch.full((), float(not kmeans_init), dtype=torch.float32, device=device)
        self.register_buffer("initted", initted)
        self._remember_initted(not kmeans_init)
        self.register_buffer("cluster_size", torch.ones(shape, dtype=torch.float32, device=device))
        self.register_buffer("embed_avg", embed.clone())
        if learnable:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)

    @property
    def needs_init(self) -> bool:
        """Whether k-means is still to run: what the buffer ``initted`` says, wherever it came from.

        The host reads it when it is another tensor, or was written to, since the last time; never while
        a graph is compiled or captured, where the last answer stands.
        """
        seen, version, is_initted = self._initted_seen
        if not torch.compiler.is_compiling() and self.initted.device.type != "meta":
            is_same = self.initted is seen and not seen.is_inference() and seen._version == version
            if not is_same and not is_capturing(self.initted):
                is_initted = bool(self.initted)
                self._remember_initted(is_initted)
        return not is_initted

    def _remember_initted(self, is_initted: bool) -> None:
        initted = self.initted
        if torch.compiler.is_compiling():
            self._initted_seen = (*self._initted_seen[:2], is_initted)
        else:
            version = 0 if initted.is_inference() else initted._version
            self._initted_seen = (initted, version, is_initted)

    def check_writable(self) -> None:
        """Raise RuntimeError if what training would write to is made anew at every access."""
        for name in ("embed", "embed_avg", "cluster_size", "initted"):
            if name not in self._buffers and name not in self._parameters:
                raise RuntimeError(
                    f"{name} of the codebook is parametrized; accepted with EMA, k-means or revival, which "
                    "write to it: a plain tensor (a learnable_codebook without them may be parametrized)"
                )

    def codes(self, private: bool = False, embed: Tensor | None = None) -> Tensor:
        """``[H, K, D]`` as they are used: codes on the sphere have unit length, whoever wrote to them.

        Learnable ones leave the sphere at every step of the optimizer; others where somebody copied weights
        into ``embed.data``, of which nothing tells.

        ``private``: nothing that autograd keeps of it is the codebook itself, which may then be written to.
        ``embed``: the values to use instead of today's, whose gradient they get.
        """
        codes = self.embed if embed is None else _ValuesOf.apply(self.embed, embed)
        if self.learnable and self.unit_length:
            codes = F.normalize(self._copy_of_codes() if private else codes, dim=-1, eps=1e-6)
        elif self.unit_length:
            codes = _to_unit_length(codes, may_ask=not self.training)
        return codes

    def codes_to_search(self, private: bool = False, embed: Tensor | None = None) -> Tensor:
        """:meth:`codes` with NaN for those that must not be chosen: a code that is not a number never is."""
        codes = self.codes(private, embed)
        if self.has_zero_codes:
            codes = torch.where((codes == 0).all(-1, keepdim=True), torch.nan, codes)
        return codes

    def _copy_of_codes(self) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.stack([opaque_copy(codes) for codes in self.embed])
        return self.embed.clone()

    def lookup(self, indices: Tensor, heads: int) -> Tensor:
        """Codes ``[..., heads * D]`` of indices ``[...]`` (several heads: ``[..., heads]``); zeros for -1."""
        check_integer_tensor("indices", indices)
        if heads > 1 and (indices.ndim == 0 or indices.shape[-1] != heads):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)}; accepted: [..., {heads}], one per head"
            )
        codebooks = self.codes()  # [H, K, D]
        if is_plain(indices):  # elsewhere what gathers them looks, and does not know of -1
            check_index_range(indices, -1, codebooks.shape[1])
        indices = indices.long()  # in uint8, 255 equals -1
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
        self.initted.fill_(1.0)
        self._remember_initted(True)

    @torch.no_grad()
    def broadcast_from_rank0_(self) -> None:
        """Take over rank 0's state, once, before the first synchronised step.

        Ranks may have been seeded differently, or rank 0 alone may have loaded a checkpoint; from
        then on they stay equal by themselves. All ranks must call this together.
        """
        if self._follows_rank0 or torch.compiler.is_compiling():
            return
        broadcast_from_first([self.initted, self.cluster_size, self.embed_avg, self.embed], self.group)
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

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("assign_to_params_buffers", False):
            # The state's tensors become the layer's own: in the dtype, shape and order that kernels ask for.
            state_dict = dict(state_dict)
            for name, own in (*self._buffers.items(), *self._parameters.items()):
                value = state_dict.get(prefix + name)
                if own is not None and isinstance(value, Tensor):
                    state_dict[prefix + name] = value.to(own.dtype).reshape(own.shape).contiguous()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if self.unit_length and self.embed.device.type != "meta":
            self._bring_loaded_codes_to_unit_length_()

    @torch.no_grad()
    def _bring_loaded_codes_to_unit_length_(self) -> None:
        """Codes stored at another length, as some models do, are scaled; those of length 0 cannot be."""
        length = self.embed.norm(dim=-1, keepdim=True)  # [H, K, 1]
        is_zero = (length == 0) & (self.initted != 0)
        self.has_zero_codes = bool(is_zero.any())
        if self.has_zero_codes:
            warnings.warn(
                f"{int(is_zero.sum())} codes of length 0 were loaded into a codebook for cosine similarity; "
                "they are left out of the search until they are revived (threshold_ema_dead_code)",
                stacklevel=2,
            )
        if not self.learnable:
            self.write_codes_(_to_unit_length(self.embed, may_ask=True))


class _ValuesOf(torch.autograd.Function):
    """Other values for a parameter, which gets their gradient."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_LENGTH_TOLERANCE = 1e-4  # of a unit length in float32, after any number of EMA steps


def _to_unit_length(codes: Tensor, may_ask: bool) -> Tensor:
    """Codes of another length scaled; the others, and those of length 0, to the bit as they are.

    ``may_ask``: the host may look at the result, as it may not in a training step.
    """
    length = codes.norm(dim=-1, keepdim=True)
    if may_ask and is_host_readable(codes) and not torch.compiler.is_compiling():
        shortest, longest = (float(t) for t in length.aminmax())
        if shortest >= 1 - _LENGTH_TOLERANCE and longest <= 1 + _LENGTH_TOLERANCE:
            return codes  # as nearly always: one look at every code, and no copy
    is_off = ((length - 1).abs() > _LENGTH_TOLERANCE) & (length > 0)
    return codes / torch.where(is_off, length, 1.0)


_M = TypeVar("_M", bound=nn.Module)


def set_process_group(model: _M, process_group: torch.distributed.ProcessGroup | None) -> _M:
    """Let all quantizers of ``model`` share their codebooks with the ranks of one group; returns the model.

    For several trainings in one world, each in its own group: DistributedDataParallel gets the same one.
    None stands for the whole world. Call it before the first batch.

    Raises:
        TypeError: ``process_group`` is not a group that this rank belongs to.
    """
    for module in model.modules():
        if isinstance(module, CodebookState):
            module.group = ProcessGroup(process_group)
            module._follows_rank0 = False
    return model
