"""Lightning modules: what one step does, what is logged, how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from models.codes.store import CodeBatch
from models.data import to_float
from models.data.augment import NOISE, augment
from models.data.loader import Batch, BatchLoader
from models.evaluation.metrics import ReconstructionMeter, level_names
from models.losses import gradient_difference, mean_or_zero
from models.runs.config import PriorConfig, TrainConfig
from models.runs.loop import LoopConfig
from models.training.memory_format import channels_last, weights_channels_last_
from models.training.optimizer import fused_adam

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder, AutoencoderOutput
    from models.priors.base import AutoregressivePrior


Call = Callable[..., Any]


class SeededModule(pl.LightningModule):
    """Adam, the schedule, and noise that depends on (seed, process, batch number) alone.

    As a step's noise does not depend on what ran before it, a resumed run draws what the uninterrupted
    one would have drawn.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, loader: BatchLoader) -> None:
        super().__init__()
        # One that was loaded comes in eval mode: without dropout, and without updates of its codebooks.
        self.model, self.config, self.loader = model.train(), config, loader
        self.total_steps = total_steps(config, len(loader))
        self.log_every = min(config.log_every, self.total_steps)  # the shortest run logs a row too
        self.diverged_at = torch.tensor(-1)  # the first step whose loss was not finite
        self.train_loss = math.nan  # that was logged last
        self.time_share = 0.0  # of ``minutes``, that have passed

    def compiled(self, call: Call) -> Call:
        """``call`` itself, or compiled where the settings ask for it; every size of a batch by itself.

        The few sizes of a run are compiled with their numbers inside: which kernel a batch meets then does
        not depend on what came before it, so that a resumed run computes what an uninterrupted one does.
        """
        return torch.compile(call, dynamic=False) if self.config.compile else call

    def on_fit_start(self) -> None:
        self.diverged_at = torch.tensor(-1, device=self.device)

    def record_divergence(self, loss: Tensor) -> Tensor:
        """Remember the step of a loss that is not finite; read when a row is logged, which waits anyway."""
        broken = ~torch.isfinite(loss.detach()) & (self.diverged_at < 0)
        self.diverged_at = torch.where(broken, self.trainer.global_step + 1, self.diverged_at)
        return loss

    def mean_of_group(self, loss: Tensor, batch_idx: int) -> Tensor:
        """The loss, weighted so that gradients of an epoch's last, smaller group of batches are averaged.

        Lightning divides every loss by ``accumulate``, also where fewer batches are left than that.
        """
        accumulate = self.config.accumulate
        batches_left = len(self.loader) - batch_idx // accumulate * accumulate
        return loss * (accumulate / batches_left) if batches_left < accumulate else loss

    def check_finite(self, *, weights: bool) -> None:
        """FloatingPointError if a loss, or where asked the weights, are not finite."""
        step, what = int(self.diverged_at), "loss"
        if step < 0 and weights:
            finite = torch.stack([torch.isfinite(weight).all() for weight in self.parameters()]).all()
            step, what = (-1 if finite else self.trainer.global_step), "weights"
        if step >= 0:
            raise FloatingPointError(
                f"the training {what} became infinite or not a number in step {step}; take a lower learning "
                f"rate (--lr, now {self.config.lr:g}) or clip gradients (--clip 1). Checkpoints in "
                f"{self.config.folder / 'checkpoints'}, if any, are from before"
            )

    def on_validation_epoch_start(self) -> None:
        self.check_finite(weights=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning restores a loader in the middle of an epoch only; here it goes on from anywhere."""
        self.check_finite(weights=True)
        checkpoint["loader"] = self.loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loader.load_state_dict(checkpoint["loader"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        # torch takes 64 bits; the remainder leaves small seeds as they are.
        torch.manual_seed(((self.config.seed * 65_537 + self.global_rank) * 1_000_000_007 + number) % 2**63)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        torch.manual_seed(batch_idx)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = fused_adam(self.model.parameters(), self.config.lr, self.config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        rise = min(1.0, (step + 1) / (self.config.warmup + 1))
        if self.config.schedule == "constant":
            return rise
        progress = max(step / max(1, self.total_steps), self.time_share)
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def log_step(self, values: dict[str, Tensor], batch_idx: int) -> None:
        """Log a training step's values and the learning rate, every ``log_every`` steps.

        The row is written at once and not, as Lightning would, after the hooks that save the step: a run that
        is killed in between would lack it.
        """
        batches = batch_idx + 1
        if batches % self.config.accumulate and batches < len(self.loader):
            return  # the step's gradients are still being accumulated
        step = self.trainer.global_step
        if (step + 1) % self.log_every:
            return
        self.check_finite(weights=False)
        row = {f"train/{name}": float(value) for name, value in values.items()}
        row |= {"train/lr": self.trainer.optimizers[0].param_groups[0]["lr"], "epoch": self.current_epoch}
        self.train_loss = row["train/loss"]
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step)
            logger.save()


class AutoencoderModule(SeededModule):
    """A VAE, VQ-VAE or VQ-VAE-2 on batches of (levels of images, labels)."""

    config: TrainConfig
    model: Autoencoder

    def __init__(self, model: Autoencoder, config: TrainConfig, loader: BatchLoader, variance: float) -> None:
        super().__init__(model, config, loader)
        weights_channels_last_(model)
        self.run_model = self.compiled(model.__call__)
        split: Any = loader.split
        self.variance, self.kind = variance, split.kind
        self.meter = self._new_meter()
        self.validation_sums: dict[str, Tensor] = {}
        self.validation_images = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        factor = min(1.0, (self.trainer.global_step + 1) / (self.config.kl_warmup + 1))
        # A number would be compiled in, and each step compiled anew.
        self.model.kl_warmup_factor = torch.tensor(factor) if self.config.compile else factor
        x = to_float(channels_last(batch[0]))
        if self.config.augments:
            x = augment(x, torch.rand(len(x), NOISE, device=x.device), self.config)
        output = self.run_model(x)
        total, terms = self._loss(x, output)
        values = {"loss": total.detach(), **terms}
        quantizers = self.model.level_quantizers
        for name, quantizer in zip(level_names(len(quantizers)), quantizers, strict=True):
            perplexity, usage = quantizer.perplexity, quantizer.usage
            if perplexity is not None and usage is not None:  # as they are for too many codes to count
                values |= {f"perplexity{name}": perplexity, f"usage{name}": usage}
        loss = self.record_divergence(total)
        self.log_step(values, batch_idx)
        return self.mean_of_group(loss, batch_idx)

    def _loss(self, x: Tensor, output: AutoencoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's loss with the terms that the settings add to it, and its parts by name: ``[]`` each."""
        loss, terms = output.loss, dict(output.terms)
        extra = {
            "l1": (self.config.l1, lambda: mean_or_zero((x - output.reconstruction).abs())),
            "gradient_l1": (self.config.gradient_l1, lambda: gradient_difference(x, output.reconstruction)),
        }
        for name, (weight, measure) in extra.items():
            if weight:
                value = measure()
                loss, terms[name] = loss + weight * value, value.detach()
        return loss, terms

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.model.update_codebooks()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.meter = self._new_meter()
        self.validation_sums, self.validation_images = {}, 0

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, tuple[Tensor, ...]]:
        x = to_float(channels_last(batch[0]))
        output = self.run_model(x)
        self.meter.update(x, output.reconstruction, output.codes)
        total, terms = self._loss(x, output)
        for name, value in {"loss": total.detach(), **terms}.items():
            self.validation_sums[name] = self.validation_sums.get(name, 0.0) + value * len(x)
        self.validation_images += len(x)
        return {"codes": output.codes}  # for callbacks

    def on_validation_epoch_end(self) -> None:
        """Log figures of all processes' images."""
        self._add_processes()
        values = {name: float(total) / self.validation_images for name, total in self.validation_sums.items()}
        values |= self.meter.compute(self.variance)
        named = {f"validation/{name}": value for name, value in values.items()}
        self.log_dict(named, sync_dist=self.trainer.world_size > 1)

    def _add_processes(self) -> None:
        """Add up what the processes have accumulated: perplexity is no mean of perplexities."""
        if self.trainer.world_size == 1:
            return
        names, meter = list(self.validation_sums), self.meter.sums()
        losses = [self.validation_images, *[float(self.validation_sums[name]) for name in names]]
        local = torch.cat([torch.tensor(losses, dtype=torch.float64), meter])
        total = self.trainer.strategy.reduce(local.to(self.device), reduce_op="sum").cpu()
        self.validation_images = int(total[0])
        self.validation_sums = dict(zip(names, total[1 : len(losses)], strict=True))
        self.meter.set_sums(total[len(losses) :])

    def _new_meter(self) -> ReconstructionMeter:
        sizes = [quantizer.codebook_sizes for quantizer in self.model.level_quantizers]
        return ReconstructionMeter(sizes, self.kind)


class PriorModule(SeededModule):
    """Autoregressive priors of levels of codes, trained together on batches of (codes, labels).

    levels: the number of each prior's level, 0 the top one; by default that of its place.
    """

    config: PriorConfig
    model: nn.ModuleList

    def __init__(
        self,
        priors: Sequence[AutoregressivePrior],
        config: PriorConfig,
        loader: BatchLoader,
        levels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(nn.ModuleList(priors), config, loader)
        self.levels = range(len(priors)) if levels is None else levels
        self.run_priors = [self.compiled(prior.__call__) for prior in priors]

    def training_step(self, batch: CodeBatch, batch_idx: int) -> Tensor:
        losses = self.losses(batch, self.config.label_dropout)
        total = self.record_divergence(torch.stack(list(losses.values())).sum())
        values = {name: loss.detach() for name, loss in losses.items()}
        self.log_step({"loss": total.detach()} | values, batch_idx)
        return self.mean_of_group(total, batch_idx)

    def validation_step(self, batch: CodeBatch, batch_idx: int) -> None:
        losses = self.losses(batch)
        values = {"loss": torch.stack(list(losses.values())).sum(), **losses}
        named = {f"validation/{name}": value for name, value in values.items()}
        self.log_dict(named, batch_size=len(batch[1]), sync_dist=self.trainer.world_size > 1)

    def losses(self, batch: CodeBatch, label_dropout: float = 0.0) -> dict[str, Tensor]:
        """The nats a code of each level, the mean over the batch: ``[]`` each.

        label_dropout: share of the labels that each prior does not see; 1 for the nats without labels.
        """
        codes, labels = batch
        losses = {}
        names = level_names(len(codes))
        priors: Iterable[Any] = self.model
        for prior, run, level in zip(priors, self.run_priors, self.levels, strict=True):
            conditions = labels if prior.num_classes is not None else None
            if label_dropout and conditions is not None:
                is_dropped = torch.rand(len(labels), device=labels.device) < label_dropout
                null = torch.full_like(conditions, prior.null_label)
                conditions = torch.where(is_dropped, null, conditions)
            upper = codes[level - 1] if level else None
            nats = -run(codes[level], conditions, upper)
            losses[f"nats_per_code{names[level]}"] = nats.mean() / codes[level][0].numel()
        return losses


def total_steps(config: LoopConfig, batches: int) -> int:
    """The number of optimizer steps of the whole run with ``batches`` batches an epoch."""
    by_epochs = config.epochs * -(-batches // config.accumulate)
    return by_epochs if config.steps is None else min(config.steps, by_epochs)
