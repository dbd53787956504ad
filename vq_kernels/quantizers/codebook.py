"""How the codebooks learn: exponential moving averages, k-means initialisation, revival of dead codes.

Everything happens on the device with static shapes; under ``torch.distributed`` every rank computes
the same from summed statistics and shared random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clustering.draw import DrawnRows, draw_rows
from ..clustering.engine import kmeans
from ..devices import moved_or_zero
from ..distributed import is_synchronized, reduce_statistics
from ..functional import ema_update_
from ..operators.first_run import first_run
from ..operators.gather import opaque_copy
from .codebook_state import CodebookState
from .heads import Rows
from .recomputation import FirstRuns, repeat_draws


class Codebook(CodebookState):
    """Codebooks ``[H, K, D]`` and their learning; see :class:`FusedVectorQuantizer` for the arguments.

    With ``manual_ema_update`` the pending statistics and, for revival, a uniform sample of the rows since
    the last :meth:`apply_pending_` wait in tensors that are no buffers: they are this rank's alone, which
    DistributedDataParallel would overwrite, and nothing that averages of models could take in.
    """

    pending_counts: Tensor  # [H, K] int64
    pending_sums: Tensor  # [H, K, D] float32
    pending_rows: Tensor  # [H, K, D] float32
    pending_usable: Tensor  # [H, K] bool
    pending_total: Tensor  # [] int64
    _pending = ("pending_counts", "pending_sums", "pending_rows", "pending_usable", "pending_total")

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        *,
        learnable: bool,
        unit_length: bool,
        kmeans_init: bool,
        kmeans_iters: int,
        ema_update: bool,
        manual_ema_update: bool,
        decay: float,
        eps: float,
        threshold_ema_dead_code: float,
        precision: str,
        backend: str | None,
    ) -> None:
        super().__init__(
            num_codebooks,
            codebook_size,
            dim,
            learnable=learnable,
            unit_length=unit_length,
            kmeans_init=kmeans_init,
        )
        self.kmeans_iters = kmeans_iters
        self.ema_update = ema_update
        self.manual_ema_update = manual_ema_update
        self.decay = decay
        self.eps = eps
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.precision = precision
        self.backend = backend
        self.first_runs = FirstRuns()
        if manual_ema_update:
            self.pending_counts = torch.zeros_like(self.cluster_size, dtype=torch.int64)
            self.pending_sums = torch.zeros_like(self.embed_avg)
            self.pending_rows = torch.zeros_like(self.embed_avg)
            self.pending_usable = torch.zeros_like(self.cluster_size, dtype=torch.bool)
            self.pending_total = self.pending_counts.new_zeros(())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._bring_pending()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._bring_pending()  # a state that is assigned takes the layer to its device

    def _bring_pending(self) -> None:
        """To where the codes are; ``to_empty`` must not make garbage of them, which nothing would load."""
        if self.manual_ema_update:
            for name in self._pending:
                setattr(self, name, moved_or_zero(getattr(self, name), self.embed.device))

    @property
    def revives(self) -> bool:
        return self.threshold_ema_dead_code > 0

    @property
    def needs_statistics(self) -> bool:
        """Whether a training batch changes anything here besides through gradients."""
        return self.ema_update or self.revives

    @property
    def is_written_to(self) -> bool:
        """Whether ``embed`` is ever changed in place by anything but an optimizer."""
        return self.needs_statistics or self.kmeans_init

    @property
    def changes_in_forward(self) -> bool:
        """Whether a training batch changes ``embed`` in place while its graph may still be needed."""
        return self.needs_statistics and not self.manual_ema_update

    def repeat_(self, learns: bool) -> Tensor | None:
        """The codes ``[H, K, D]`` of the run that a call of a backward pass repeats.

        None where a run changes nothing here: the codes are today's.

        Raises:
            RuntimeError: a batch would be learnt from, and whether for the first or for the second time is
                not known.
        """
        run = self.first_runs.find()
        if run is not None:
            repeat_draws(run)
            return run.embed
        if learns and (self.needs_statistics or self.needs_init):
            raise RuntimeError(
                "a codebook that learns from its batches is called by a backward pass, and its first run "
                "with this batch is not known; accepted: what torch.utils.checkpoint runs again (without "
                "other hooks for saved tensors inside), or freeze_codebook=True"
            )
        return None

    def prepare_(self, rows: Rows, learns: bool, sync_codebook: bool | None) -> bool:
        """What the first run with a batch asks for before its search; whether the ranks share statistics.

        The codes of rank 0, once, and k-means where there are no codes yet; a copy of the codes where the
        batch may be run again.
        """
        synchronized, draws = False, 0
        # Ranks must decide alike: one of them may have its codes, and the others wait for its broadcast.
        if learns and (self.needs_statistics or self.kmeans_init or self.needs_init):
            self.check_writable()
            synchronized = is_synchronized(sync_codebook, self.group)
            if synchronized:
                self.broadcast_from_rank0_()
            if self.needs_init:
                self.initialize_(rows, synchronized)
                draws += len(rows.views)
            if self.revives:
                draws += len(rows.views)
        if (self.needs_statistics or draws) and not torch.compiler.is_compiling():
            self.first_runs.note(self.embed, draws)
        return synchronized

    @torch.no_grad()
    def initialize_(self, rows: Rows, synchronized: bool) -> None:
        """k-means over the batch; if it holds no row the codes stay as they are and the next one is tried.

        A mean without rows counts as one row, like a fresh code: with none it would drop to zero at
        the first EMA step. So does one whose average float32 could not hold.
        """
        clusters = [
            kmeans(
                view,
                rows.mask,
                self.embed.shape[1],
                iterations=self.kmeans_iters,
                metric="cosine" if self.unit_length else "l2",
                precision=self.precision,
                channel_dim=rows.channel_dim,
                backend=self.backend,
                synchronized=synchronized,
                group=self.group,
            )
            for view in rows.views
        ]
        means = torch.stack([c.means for c in clusters])  # [H, K, D]
        sizes = torch.stack([c.counts for c in clusters]).clamp(min=1)  # [H, K]
        sizes = torch.where((means * sizes[..., None]).isfinite().all(-1), sizes, 1.0)  # [H, K]
        has_rows = torch.stack([c.total for c in clusters]).amin() > 0  # []
        # A compiled graph may run once more than k-means should; what was initialised stays.
        has_rows = has_rows & (self.initted == 0)  # []
        self.write_codes_(torch.where(has_rows, means, self.embed))
        self.cluster_size.copy_(torch.where(has_rows, sizes, self.cluster_size))
        self.embed_avg.copy_(torch.where(has_rows, means * sizes[..., None], self.embed_avg))
        self.initted.logical_or_(has_rows)
        # The one question the host asks the device in the life of a layer. A compiler cannot ask:
        # there the first batch must hold a row.
        has_no_answer = torch.compiler.is_compiling() or self.initted.is_meta
        self._remember_initted(True if has_no_answer else bool(self.initted))

    @torch.no_grad()
    def update_(self, counts: Tensor, sums: Tensor, rows: Rows, synchronized: bool) -> Tensor:
        """Take in a batch's counts ``[H, K]`` and sums ``[H, K, D]``; returns the counts of all ranks."""
        if torch.compiler.is_compiling():
            counts = first_run(counts)
        drawn = self._draw(rows, synchronized) if self.revives else None
        if self.manual_ema_update:
            self.accumulate_(counts, sums, drawn)
            return counts
        if synchronized:
            counts, sums = reduce_statistics(counts, sums, self.group)
        self.ema_step_(counts, sums)
        if drawn is not None:
            self._revive_(drawn.rows, drawn.usable)
        return counts

    @torch.no_grad()
    def apply_pending_(self, synchronized: bool) -> Tensor:
        """One step from everything accumulated since the last; returns its counts ``[H, K]`` of all ranks."""
        counts, sums = self.pending_counts, self.pending_sums
        if synchronized:
            counts, sums = reduce_statistics(counts, sums, self.group)
        self.ema_step_(counts, sums)
        if self.revives:
            self._revive_(self.pending_rows, self.pending_usable)
        counts = counts.clone()
        for buffer in (self.pending_counts, self.pending_sums, self.pending_usable, self.pending_total):
            buffer.zero_()
        return counts

    def ema_step_(self, counts: Tensor, sums: Tensor) -> None:
        """One EMA step; none if no row was counted."""
        sums = sums.to(self.embed_avg.dtype)
        if self.ema_update:
            # Inductor reads past the end of a slice with an offset that a custom operator writes to
            # (https://github.com/pytorch/pytorch/issues/192219); there, copies are written instead.
            apart = torch.compiler.is_compiling() and len(self.embed) > 1
            for h in range(len(self.embed)):
                embed, size, average = self.embed[h], self.cluster_size[h], self.embed_avg[h]
                if apart:
                    embed, average = opaque_copy(embed), opaque_copy(average)
                    size = opaque_copy(size[:, None])[:, 0]
                ema_update_(
                    embed,
                    size,
                    average,
                    counts[h],
                    sums[h],
                    decay=self.decay,
                    eps=self.eps,
                    normalize=self.unit_length,
                    backend=self.backend,
                )
                if apart:
                    self.embed[h] = embed
                    self.cluster_size[h] = size
                    self.embed_avg[h] = average
            if self._sharded_embed is not None:
                self.write_codes_(self.embed)
            return
        # Codes trained by gradient stay, but revival needs to know how often they are taken.
        weight = (1.0 - self.decay) * (counts.sum(-1, keepdim=True) > 0).float()  # [H, 1]
        self.cluster_size.lerp_(counts.float(), weight)
        averages = self.embed_avg.lerp(sums, weight[..., None])  # [H, K, D]
        fits = averages.isfinite().all(-1, keepdim=True)  # [H, K, 1]
        self.embed_avg.copy_(torch.where(fits, averages, self.embed_avg))

    def _revive_(self, rows: Tensor, usable: Tensor) -> None:
        """Codes whose size fell below the threshold become the given rows ``[H, K, D]``, with that size.

        After the EMA step, which would overwrite them. A code whose row is not usable ``[H, K]``, or at that
        size more than float32 holds, waits.
        """
        threshold = self.threshold_ema_dead_code
        if self.unit_length:
            rows = F.normalize(rows, dim=-1, eps=1e-6)
        averages = rows * threshold  # [H, K, D]
        dead = (self.cluster_size < threshold) & usable & averages.isfinite().all(-1)  # [H, K]
        self.write_codes_(torch.where(dead[..., None], rows, self.embed))
        self.embed_avg.copy_(torch.where(dead[..., None], averages, self.embed_avg))
        self.cluster_size.copy_(torch.where(dead, threshold, self.cluster_size))

    def _draw(self, rows: Rows, synchronized: bool) -> DrawnRows:
        """A random row of the batch for each code of each codebook: fields ``[H, K, ...]``."""
        drawn = [
            draw_rows(
                view,
                rows.mask,
                self.embed.shape[1],
                channel_dim=rows.channel_dim,
                synchronized=synchronized,
                group=self.group,
            )
            for view in rows.views
        ]
        return DrawnRows(*(torch.stack(field) for field in zip(*drawn, strict=True)))

    def accumulate_(self, counts: Tensor, sums: Tensor, drawn: DrawnRows | None) -> None:
        """Add a micro-batch; each code's sampled row stays uniform over all rows since the last update."""
        self.pending_counts.add_(counts)
        self.pending_sums.add_(sums)
        if drawn is None:
            return
        new = drawn.total[0]  # []
        self.pending_total.add_(new)
        replace = drawn.uniforms * self.pending_total < new  # [H, K]
        replace = drawn.usable & (replace | ~self.pending_usable)
        self.pending_rows.copy_(torch.where(replace[..., None], drawn.rows, self.pending_rows))
        self.pending_usable.logical_or_(replace)
