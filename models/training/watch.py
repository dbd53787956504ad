"""Trainings that go wrong without an error: what is noticed, and which setting to change.

A loss or weights that are not finite stop a run, see :class:`models.training.modules.SeededModule`. What is
noticed here is said once, on standard error and in ``warnings.txt`` of the run's folder:

- a codebook of which fewer than 5% of the codes were used in an epoch of training;
- a commitment term that has grown in five validations in a row, to three times what it was, while the
  reconstruction got better: the encoder runs away from its codes;
- a training loss that is above where it began by more than it had fallen, as with too high a learning rate;
- a level of a hierarchy whose codes hardly say more than where they lie, in three validations in a row or in
  the last one: the entropy of a code given its position is below a fifth of the highest possible.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from models.evaluation.metrics import level_names
from models.runs.history import read_history
from models.runs.loop import LoopConfig

LEAST_USAGE = 0.05  # of the codes, or of the positions of an epoch where those are fewer
LEAST_ENTROPY = 0.2  # given the position, as a share of the highest possible
MOST_VALUES = 2**16  # of a code whose entropy is measured
MOST_POSITIONS = 64  # of a level whose codes are counted one by one
_GROWING = 5  # validations in a row
_GROWTH = 3.0
_EMPTY = 3  # validations in a row, or the last one
_WINDOW = 5  # logged losses, of which the median is taken


class TrainingWatch(pl.Callback):
    """Says what goes wrong in a run, each thing once; a resumed run does not say it again."""

    def __init__(self, config: LoopConfig) -> None:
        self.config, self.file = config, config.layout.warnings
        self.lr = f"(--lr, now {config.lr:g})"
        self.losses, self.step = LossWatch(), 0
        self.validations: list[tuple[float, float]] = []  # commitment, reconstruction
        self.counts: list[Tensor | None] = []  # of an epoch's codes, [Q, K] for each level
        self.entropies: dict[str, PositionEntropy] = {}
        self.empty: dict[str, int] = {}  # validations in a row in which the level was

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that goes on knows the losses that it has logged."""
        if trainer.global_step:
            for loss in read_history(self.config.folder).get("train/loss", ([], []))[1]:
                self.losses.add(loss)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.counts = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *rest: Any
    ) -> None:
        latest = [quantizer.last_counts for quantizer in _quantizers(pl_module)]
        if not self.counts:
            self.counts = [None if counts is None else torch.zeros_like(counts) for counts in latest]
        for total, counts in zip(self.counts, latest, strict=True):
            if total is not None and counts is not None:
                total += counts
        step, log_every = trainer.global_step, int(getattr(pl_module, "log_every", 1))
        is_new, self.step = step != self.step, step  # of accumulated batches one ends a step
        if is_new and (step == 1 or step % log_every == 0):  # the loss of a row in the logs is read anyway
            # Lightning has divided it by the number of batches of a step.
            loss = self.losses.add(float(outputs["loss"]) * self.config.accumulate)
            if loss is not None:
                self._say(
                    trainer,
                    "diverging",
                    f"the training loss rose to {loss:.3g} before step {step}: it diverges; take a lower "
                    f"learning rate {self.lr}, warm it up (--warmup) or clip gradients (--clip 1)",
                )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        quantizers = _quantizers(pl_module)
        names = level_names(len(quantizers))
        for name, counts in zip(names, self.counts, strict=False):
            for number, code in enumerate(() if counts is None else counts):
                self._check_usage(trainer, name, number, code)
        self.entropies = {
            name: PositionEntropy(quantizer.codebook_sizes)
            for name, quantizer in zip(names, quantizers, strict=True)
            if len(names) > 1 and max(quantizer.codebook_sizes) <= MOST_VALUES
        }

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *rest: Any
    ) -> None:
        names = level_names(len(_quantizers(pl_module)))
        for name, codes in zip(names, outputs["codes"] if names else (), strict=True):
            if name in self.entropies:
                self.entropies[name].update(codes)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = trainer.callback_metrics
        names = ("validation/commitment", "validation/reconstruction")
        if all(name in values for name in names):
            self.validations.append((float(values[names[0]]), float(values[names[1]])))
        if runs_away(self.validations):
            first, last = self.validations[-_GROWING - 1][0], self.validations[-1][0]
            self._say(
                trainer,
                "commitment",
                f"the commitment term grew from {first:.3g} to {last:.3g} in {_GROWING} validations while "
                f"the reconstruction got better: the encoder runs away from its codes; give the term more "
                f"weight (--beta), or take a lower learning rate {self.lr} or faster codes (a lower --decay)",
            )
        for name, entropy in self.entropies.items():
            nats, most = entropy.compute()
            is_empty = nats < LEAST_ENTROPY * most
            self.empty[name] = self.empty.get(name, 0) + 1 if is_empty else 0
            is_over = trainer.global_step >= getattr(pl_module, "total_steps", 0)
            if self.empty[name] >= _EMPTY or (is_empty and is_over):
                self._say(
                    trainer,
                    f"empty{name}",
                    f"the {name[1:]} level is nearly empty: once its position is known a code has {nats:.2f} "
                    f"nats of {most:.2f} possible, and other levels carry the images; give the levels other "
                    f"sizes (--downscales), or train with fewer of them",
                )

    def _check_usage(self, trainer: pl.Trainer, level: str, number: int, counts: Tensor) -> None:
        """Of one of a position's codes: how often each of its values, ``[K]``, was used in an epoch."""
        size, positions, used = len(counts), int(counts.sum()), int((counts > 0).sum())
        if size > 1 and positions and used < max(2, LEAST_USAGE * min(size, positions)):
            self._say(
                trainer,
                f"collapse{level}{number}",
                f"{f'the {level[1:]} level: ' if level else ''}{used} of {size} codes were used in epoch "
                f"{trainer.current_epoch + 1}: the codebook has collapsed; train again with --kmeans-init, "
                f"--dead-code-threshold 1 or a lower learning rate {self.lr}",
            )

    def _say(self, trainer: pl.Trainer, kind: str, text: str) -> None:
        """Print and store a warning, unless one of its ``kind`` is stored already."""
        if not trainer.is_global_zero:
            return
        stored = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        if any(line.startswith(f"{kind}: ") for line in stored.splitlines()):
            return
        print(f"warning: {text}", file=sys.stderr, flush=True)
        with open(self.file, "a", encoding="utf-8") as handle:
            handle.write(f"{kind}: {text}\n")


def _quantizers(module: pl.LightningModule) -> Sequence[Any]:
    """Those of an autoencoder's levels, top first; none of priors."""
    return tuple(getattr(module.model, "level_quantizers", ()))


class LossWatch:
    """Whether a series of training losses, that of the first step among them, diverges."""

    def __init__(self) -> None:
        self.recent: list[float] = []
        self.first, self.lowest = math.nan, math.inf

    def add(self, loss: float) -> float | None:
        """The median of the last losses where it is too high; None else.

        Too high is above the first loss by more than they had fallen from there, and by more than half of
        it: losses that came down from 1.1 to 0.1 may rise to 2.1.
        """
        if math.isnan(self.first):
            self.first = loss
            return None
        self.recent.append(loss)
        if len(self.recent) < _WINDOW:
            return None
        median = statistics.median(self.recent)
        self.recent.clear()
        self.lowest = min(self.lowest, median)
        rise = max(self.first - self.lowest, abs(self.first) / 2)
        return median if median > self.first + rise else None


def runs_away(history: Sequence[tuple[float, float]]) -> bool:
    """Whether (commitment, reconstruction) of the last validations say so; the first one is left out."""
    last = history[1:][-_GROWING - 1 :]
    if len(last) <= _GROWING:
        return False
    pairs = itertools.pairwise(last)
    grows = all(after[0] > before[0] and after[1] <= before[1] for before, after in pairs)
    # While an encoder still learns to reconstruct at all, its latents spread as they should.
    has_learned = last[-1][1] > 0.5 * last[0][1]
    return grows and has_learned and last[-1][0] > _GROWTH * last[0][0]


class PositionEntropy:
    """The entropy of a level's codes once their position is known, from the codes of many images.

    sizes: of the Q codes of a position. At most ``MOST_POSITIONS`` positions, evenly spread over the map, are
    counted.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.images = 0
        self.counts: list[Tensor] = []  # of each of the Q codes, [positions, K]

    def update(self, codes: Tensor) -> None:
        """Add the codes of a level as models give them: ``[B, *S]``, or ``[B, *S, Q]``."""
        rows = codes.reshape(len(codes), -1, len(self.sizes))  # [B, N, Q]
        count = min(MOST_POSITIONS, rows.shape[1])
        chosen = torch.linspace(0, rows.shape[1] - 1, count).round().long()
        rows = rows[:, chosen.to(rows.device)].cpu()
        if not self.counts:
            self.counts = [torch.zeros(count, size, dtype=torch.int64) for size in self.sizes]
        self.images += len(codes)
        for counts, level in zip(self.counts, rows.unbind(-1), strict=True):
            counts.scatter_add_(1, level.T, torch.ones_like(level.T))

    def compute(self) -> tuple[float, float]:
        """The entropy in nats, the mean over positions and codes, and the highest that there can be."""
        if not self.images:
            return 0.0, 0.0
        shares = [counts.double() / self.images for counts in self.counts]
        nats = [float(torch.special.entr(share).sum(1).mean()) for share in shares]
        most = [math.log(min(size, self.images)) for size in self.sizes]
        return sum(nats) / len(nats), sum(most) / len(most)
