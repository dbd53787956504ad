"""The layer: search, gradient, losses, codebook update and bookkeeping of a vector-quantised bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_flag
from ..distributed import ProcessGroup, is_synchronized
from ..functional import VectorQuantized, vector_quantize
from ..operators.prepared import made_of
from ..operators.registry import is_traced, needs_gradient
from ..tensor_checks import FLOAT_DTYPES, check_device, check_dtype, check_shape, check_tensor
from .base import Quantizer, QuantizerOutput
from .codebook import Codebook
from .heads import Layout, Rows, merge_heads, row_mask, split_heads, with_gradient, with_gradient_of_codes
from .recomputation import is_recomputation
from .settings import UNSUPPORTED_CALL_OPTIONS, UNSUPPORTED_OPTIONS, check_settings, reject_unsupported


class FusedVectorQuantizer(Quantizer):
    """Vector quantisation (arXiv:1711.00937) as one layer: ``quantized, indices, loss = layer(x)``.

    Takes the place of vector-quantize-pytorch's ``VectorQuantize``: same names, defaults, results and
    checkpoints, except for what docs/differences.md lists (in eval mode the loss is the true loss, not 0).

    x is ``[..., dim]``, or channel-first ``[B, dim, *S]`` of one to three spatial dimensions. With
    ``heads=h`` its channels are cut into h parts, each quantised by itself. For example,
    ``FusedVectorQuantizer(64, 512, codebook_dim=32, heads=2)`` takes x ``[8, 100, 64]`` and returns
    quantized ``[8, 100, 64]``, indices ``[8, 100, 2]`` and loss ``[]``; its ``codebook`` is ``[512, 32]``.

    Args:
        dim: number of channels of the input.
        codebook_size: K, the number of codes.

        codebook_dim: D, the length of a code. If ``heads * codebook_dim`` is not ``dim``, linear maps
            stand before and after; ``layernorm_after_project_in`` adds a LayerNorm to the first.
        heads: parts of the channels; with ``separate_codebook_per_head`` each has its own codebook.

        channel_last: False for ``[B, dim, *S]``. ``accept_image_fmap`` is exactly ``[B, dim, H, W]``,
            ``accept_3d_fmap`` exactly ``[B, dim, T, H, W]``. No layout is copied into another.
        return_zeros_for_masked_padding: masked rows come out as zeros; False: as they came in.

        use_cosine_sim: rows and codes are brought to unit length; the largest product wins.
        rotation_trick: how gradients pass (arXiv:2410.06424); False is the straight-through
            estimator. None: True if dim is above 1.
        commitment_weight: weight of the squared error that moves x towards its code.
        codebook_weight: weight of the squared error that moves codes towards x; needs
            ``learnable_codebook``. None: one squared error moves both, as in ``VectorQuantize``.

        learnable_codebook: codes are a Parameter, trained by gradient instead of EMA.
        ema_update: codes follow the average of their rows. None: True unless learnable.
        manual_ema_update: forward gathers statistics and :meth:`update_ema` applies them in one
            step, so that micro-batches act like one large batch.
        freeze_codebook: nothing in the codebook changes; also an argument of forward.
        decay, eps: of the moving averages, and the Laplace smoothing of their sizes.
        kmeans_init: start from k-means, ``kmeans_iters`` rounds, over the first training batch (of
            all ranks) that holds a row. Until then the codes are zero; eval never initialises.
        threshold_ema_dead_code: codes whose average size falls below it become random rows of the
            batch, learnable ones too (their optimizer's moments are not touched). 0: never.
        sync_codebook: share statistics, k-means and revival between the ranks, which then must all
            train, or all freeze, together. None: if there is more than one when a batch arrives.
        process_group: the ranks that share the codebook; None: all. See :func:`set_process_group`.

        precision: ``"exact"``, ``"high"`` or ``"fast"``; see :func:`vq_kernels.nearest_code`.
        backend: a name of :func:`vq_kernels.available_backends`, or None for automatic choice.

    Raises:
        ValueError, TypeError: naming the argument, its value and what is accepted. Options of
            ``VectorQuantize`` that do not exist here are accepted at the defaults they have there.
    """

    last_counts: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        *,
        layernorm_after_project_in: bool = False,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        return_zeros_for_masked_padding: bool = True,
        use_cosine_sim: bool = False,
        rotation_trick: bool | None = None,
        commitment_weight: float = 1.0,
        codebook_weight: float | None = None,
        learnable_codebook: bool | None = None,
        ema_update: bool | None = None,
        manual_ema_update: bool = False,
        threshold_ema_dead_code: float = 0,
        sync_codebook: bool | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
        precision: str = "exact",
        backend: str | None = None,
        **unsupported: object,
    ) -> None:
        check_settings(FusedVectorQuantizer.__init__, locals())
        reject_unsupported(unsupported, UNSUPPORTED_OPTIONS, "FusedVectorQuantizer")
        super().__init__()
        self.dim = dim = int(dim)  # NumPy's integers are no sizes for torch
        self.codebook_size = codebook_size = int(codebook_size)
        self.heads = heads = int(heads)
        self.separate_codebook_per_head = separate_codebook_per_head
        self.accept_image_fmap = accept_image_fmap
        self.accept_3d_fmap = accept_3d_fmap
        self.channel_last = channel_last and not accept_image_fmap and not accept_3d_fmap
        self._layout = Layout(dim, self.channel_last, accept_image_fmap, accept_3d_fmap)
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.use_cosine_sim = use_cosine_sim
        self.rotation_trick = dim > 1 if rotation_trick is None else rotation_trick
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.learnable_codebook = bool(learnable_codebook)
        self.freeze_codebook = freeze_codebook
        self.sync_codebook = sync_codebook
        self.precision = precision
        self.backend = backend

        code_dim = dim if codebook_dim is None else int(codebook_dim)
        self.has_projections = code_dim * heads != dim
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:  # in this order, so that one seed gives VectorQuantize's parameters
            self.project_in = nn.Linear(dim, code_dim * heads)
            if layernorm_after_project_in:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(code_dim * heads))
            self.project_out = nn.Linear(code_dim * heads, dim)
        self._codebook = Codebook(
            heads if separate_codebook_per_head else 1,
            codebook_size,
            code_dim,
            learnable=self.learnable_codebook,
            unit_length=use_cosine_sim,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            ema_update=not self.learnable_codebook if ema_update is None else ema_update,
            manual_ema_update=manual_ema_update,
            decay=decay,
            eps=eps,
            threshold_ema_dead_code=threshold_ema_dead_code,
            precision=precision,
            backend=backend,
        )
        self._codebook.group = ProcessGroup(process_group)
        self.last_counts = torch.zeros_like(self._codebook.cluster_size, dtype=torch.int64)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        freeze_codebook: bool | None = None,
        **unsupported: object,
    ) -> QuantizerOutput:
        """Quantise x and, in training, let the codebook learn from it.

        Args:
            x: ``[..., dim]``, or ``[B, dim, *S]`` if channel-first; float32, bfloat16, float16, float64.
            mask: bool, x's shape without its channels, True where a row counts. Other rows have index
                -1 and no part in the loss, the update or the statistics.
            lens: ``[B]`` integers instead of a mask, for sequences: the first ``lens[b]`` rows count.
            freeze_codebook: overrides the constructor's for this call.

        Raises:
            ValueError, TypeError: naming the argument, its value and what is accepted.
        """
        if unsupported:
            reject_unsupported(unsupported, UNSUPPORTED_CALL_OPTIONS, "FusedVectorQuantizer.forward")
        check_tensor("x", x)
        check_dtype("x", x, FLOAT_DTYPES)
        codebook = self._codebook
        check_device("x", x, codebook.embed.device, "the layer's")
        channel_dim = self._layout.channel_dim_of(x)
        mask = row_mask(x, channel_dim, mask, lens)
        if freeze_codebook is not None:
            check_flag(freeze_codebook=freeze_codebook)
        learns = self.training and not (self.freeze_codebook if freeze_codebook is None else freeze_codebook)

        inner, inner_channel_dim = x, channel_dim
        if mask is not None and (self.has_projections or self.use_cosine_sim):
            # Padding may hold anything: through a product even a zero gradient would make NaN of NaN.
            inner = torch.where(mask.unsqueeze(channel_dim), x, 0.0)
        if self.has_projections:
            inner, inner_channel_dim = self.project_in(inner.movedim(channel_dim, -1)), -1
        rows = split_heads(inner, mask, inner_channel_dim, self.heads, self.separate_codebook_per_head)
        if self.use_cosine_sim:
            rows = rows.to_unit_length()

        repeats = is_recomputation()
        embed = codebook.repeat_(learns) if repeats else None
        synchronized = not repeats and codebook.prepare_(rows, learns, self.sync_codebook)
        results = self._quantize(rows, learns, embed)
        if self.learnable_codebook and learns and not x.requires_grad:  # as VectorQuantize has it
            results = with_gradient_of_codes(results, codebook.codes(embed is None, embed), rows.channel_dim)
        result = merge_heads(results, inner_channel_dim, self.heads)
        if self.training and not repeats:
            self.last_counts = result.counts
            if learns and codebook.needs_statistics:
                self.last_counts = codebook.update_(result.counts, result.sums, rows, synchronized)
        quantized = result.quantized
        if self.has_projections:
            quantized = self.project_out(quantized)
            quantized = quantized if channel_dim == -1 else quantized.movedim(-1, channel_dim)
        if mask is not None and (self.has_projections or not self.return_zeros_for_masked_padding):
            # The bias of the projection must not show where nothing was quantised.
            padding = torch.zeros_like(x) if self.return_zeros_for_masked_padding else x
            quantized = torch.where(mask.unsqueeze(channel_dim), quantized, padding.to(quantized.dtype))
        loss = result.loss
        if self.learnable_codebook and learns and self.codebook_weight is None:
            # Both gradients of one squared error; its value is to be counted once.
            loss = loss - 0.5 * loss.detach()
        loss = with_gradient(loss) if self.training else loss
        return QuantizerOutput(quantized, result.indices, loss)

    @property
    def codebook(self) -> Tensor:
        """The codes ``[K, D]``, or ``[heads, K, D]`` with ``separate_codebook_per_head``.

        Setting it starts the averages again from the new codes and counts as initialisation.
        """
        codes = self._codebook.codes()
        codes = codes if self.separate_codebook_per_head else codes[0]
        return codes if codes is self._codebook.embed else made_of(codes, self._codebook.embed)

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        check_tensor("codebook", codes)
        check_dtype("codebook", codes, FLOAT_DTYPES)
        check_shape("codebook", codes, self.codebook.shape, "this layer's")
        self._codebook.check_writable()
        self._codebook.set_codes_(codes if self.separate_codebook_per_head else codes.unsqueeze(0))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.heads

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of ``indices`` (as forward returns them), before the projection; zeros for index -1.

        Returns:
            ``[..., heads * D]``, or channel-first ``[B, heads * D, *S]`` if the layer is.
        """
        codes = self._codebook.lookup(indices, self.heads).to(self.codes_dtype)
        return codes if self.channel_last or codes.ndim < 3 else codes.movedim(-1, 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What forward gives in eval for ``indices``: the codes after the projection; zeros for index -1."""
        output = self._codebook.lookup(indices, self.heads).to(self.codes_dtype)
        if self.has_projections:
            is_valid = (indices >= 0).any(-1) if self.heads > 1 else indices >= 0
            output = torch.where(is_valid.unsqueeze(-1), self.project_out(output), 0.0)
        return output if self.channel_last or output.ndim < 3 else output.movedim(-1, 1)

    def update_ema(self) -> None:
        """Apply what forward gathered since the last call, as one step; needs ``manual_ema_update=True``."""
        if not self._codebook.manual_ema_update:
            raise RuntimeError("manual_ema_update is False; accepted: True (forward updates the codebook)")
        self.update_codebooks()

    def update_codebooks(self) -> None:
        """Apply what forward gathered with ``manual_ema_update=True``; does nothing where nothing waits."""
        if self._codebook.manual_ema_update:
            counts = self._codebook.apply_pending_(is_synchronized(self.sync_codebook, self._codebook.group))
            self.last_counts = torch.where(counts.sum() > 0, counts, self.last_counts)

    def _quantize(self, rows: Rows, learns: bool, embed: Tensor | None) -> list[VectorQuantized]:
        # The backward pass reads the codes that were searched, not the updated ones.
        codebook = self._codebook
        private = learns and codebook.changes_in_forward and embed is None
        codes = codebook.codes_to_search(private, embed)  # [H, K, D]
        codes = codes if learns else codes.detach()
        shared = embed is None and not private and codebook.is_written_to
        in_graph = torch.compiler.is_compiling() or is_traced()  # compiled ones copy by themselves
        if shared and not in_graph and needs_gradient(*rows.views):
            codes = codes.clone()  # before the backward pass another call may learn
        weight = self.codebook_weight
        if weight is None:
            weight = self.commitment_weight * (self.learnable_codebook and learns)
        return [
            vector_quantize(
                view,
                codes[h],
                commitment_weight=self.commitment_weight,
                codebook_weight=weight,
                gradient="rotation_trick" if self.rotation_trick else "straight_through",
                metric="cosine" if self.use_cosine_sim else "l2",
                precision=self.precision,
                channel_dim=rows.channel_dim,
                mask=rows.mask,
                statistics=self.training or weight > 0,
                keep_codes=private,
                backend=self.backend,
            )
            for h, view in enumerate(rows.views)
        ]
