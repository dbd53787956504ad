"""The part that training an autoencoder and training a prior share: the Trainer and its folder."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import signal
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from models.data.loader import BatchLoader, Split
from models.runs.device import check_compiler, find_gpu, has_bfloat16
from models.runs.loop import LoopConfig
from models.runs.machine import recorded
from models.runs.reproducible import deterministic_algorithms
from models.runs.start import already_done, check_folder, read_checkpoint
from models.settings import format_value
from models.training.callbacks import RunBar
from models.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    PatientStopping,
    StopTraining,
    TimeLimit,
)
from models.training.logs import check_installed, make_loggers
from models.training.modules import SeededModule
from models.training.processes import cluster_environment, join_tasks, processes, requeue
from models.training.signals import StopSignals, TrainingStopped
from models.training.watch import TrainingWatch
from vq_kernels.checks import check_choice


def check_start(config: LoopConfig, resume: bool | str, overwrite: bool) -> bool:
    """Whether the run goes on from a checkpoint; changes nothing.

    resume: True, False, or ``"auto"`` to go on if the folder holds a run. ValueError unless a run with these
    settings can start here and now.
    """
    check_choice((False, True, "auto"), resume=resume)
    goes_on = config.layout.config.is_file() if resume == "auto" else bool(resume)
    join_tasks()
    rank, world, local = processes()
    if config.devices not in (None, local):
        command = f"torchrun --nproc-per-node {config.devices} -m models ..."
        here = f"the {local} processes that torchrun started here" if world > 1 else "1, a single process"
        raise ValueError(f"devices is {config.devices}; accepted: {here}, or start with: {command}")
    if config.accelerator == "gpu" and find_gpu() is None:
        raise ValueError("accelerator is 'gpu', but torch finds no GPU here; accepted: 'auto' or 'cpu'")
    if config.precision == "16-mixed" and (config.accelerator == "cpu" or find_gpu() is None):
        raise ValueError(
            "precision is '16-mixed', which needs a GPU; accepted on the CPU: '32-true' or 'bf16-mixed'"
        )
    if config.compile and trains_on_cpu(config):
        check_compiler()
    check_installed(config.logger)
    if rank == 0:  # which makes the folder, perhaps before the others look
        check_folder(config, goes_on, overwrite)
        if config.progress and config.precision == "32-true" and trains_on_cpu(config):
            _propose_bfloat16()
    return goes_on


def nothing_left(config: LoopConfig, models: Sequence[Path]) -> bool:
    """Whether the run to go on with has done more than ``config`` asks for, which is said; changes nothing.

    models: folders of what it trains. ValueError if it has done more, but has not written those.
    """
    done = already_done(config)
    if not done:
        return False
    if not config.layout.is_finished(models):
        raise ValueError(
            f"{done} in {config.folder}, more than asked for, and the run is not finished; go on without a "
            f"lower limit, or write the model of its best checkpoint (export)"
        )
    if processes().rank == 0:
        print(f"{done} in {config.folder}, more than asked for: nothing is trained or changed", flush=True)
    return True


def trains_on_cpu(config: LoopConfig) -> bool:
    """Whether a run with these settings trains on the CPU."""
    return config.accelerator == "cpu" or find_gpu() is None


@cache
def _propose_bfloat16() -> None:
    """Say once a process that bfloat16 is there, where the processor has instructions for it."""
    if has_bfloat16():
        print(
            "this processor computes in bfloat16: with --precision bf16-mixed a step is up to twice as fast; "
            "losses, weights and codebooks stay float32",
            flush=True,
        )


def training_loader(split: Split, config: LoopConfig, world: int, rank: int) -> BatchLoader:
    """Batches to learn from, in an order that depends on seed and epoch alone."""
    pin = not trains_on_cpu(config)
    return BatchLoader(
        split, config.batch_size, shuffle=True, seed=config.seed, world=world, rank=rank, pin=pin
    )


def fit(
    config: LoopConfig,
    module: SeededModule,
    validation: BatchLoader,
    callbacks: list[Callback],
    checkpoint: Path | None,
) -> Path:
    """Train; validate after every epoch and at the end. Returns the checkpoint of lowest validation loss.

    Raises TrainingStopped after a signal, KeyboardInterrupt after a second one, FloatingPointError if the
    loss or the weights diverge, and OSError for a file that cannot be written.
    """
    best, last = config.layout.best, config.layout.last
    record = recorded(config.layout.machine) if processes().rank == 0 else nullcontext()
    with record, warnings.catch_warnings(), StopSignals() as signals:
        state = {"epoch": 0, "global_step": 0} if checkpoint is None else read_checkpoint(checkpoint)
        loggers = make_loggers(config.layout, int(state["global_step"]), config.logger)
        trainer = make_trainer(config, module, callbacks, loggers, signals)
        # Lightning refuses fewer epochs than were done.
        trainer.fit_loop.max_epochs = max(config.epochs, int(state["epoch"]))
        del state
        # Lightning knows DataLoaders; BatchLoader needs no workers and no other sampler.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*may not be saved.*|.*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")  # inside Lightning
        warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging.*")
        warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")  # see _validate_end
        on_gpu = trainer.strategy.root_device.type != "cpu"
        with deterministic_algorithms(config.deterministic and on_gpu):
            try:
                trainer.fit(module, module.loader, validation, ckpt_path=checkpoint, weights_only=True)
            except StopTraining:
                if config.requeue and trainer.is_global_zero:
                    requeue()
                raise TrainingStopped(signals.received or signal.SIGINT) from None
            except SystemExit as stop:
                if not trainer.interrupted:
                    raise
                raise KeyboardInterrupt from stop
            if trainer.global_step % -(-len(module.loader) // config.accumulate):
                # LastCheckpoint has saved it, where Lightning had not yet counted the epoch as done.
                _validate_end(trainer, module, validation, best, last)
            else:
                trainer.save_checkpoint(last, weights_only=False)
    _log_settings(trainer, config)
    if config.progress and trainer.is_global_zero:
        print(_result(trainer, module), flush=True)
    return best


def _result(trainer: pl.Trainer, module: SeededModule) -> str:
    """One line that says how the run ended."""
    losses = {
        "training loss": None if math.isnan(module.train_loss) else module.train_loss,
        "last validation loss": trainer.callback_metrics.get("validation/loss"),
        "lowest validation loss": getattr(trainer.checkpoint_callback, "best_model_score", None),
    }
    said = [f"{name} {float(value):.4g}" for name, value in losses.items() if value is not None]
    return f"trained {trainer.global_step} steps: {', '.join(said)}"


def _log_settings(trainer: pl.Trainer, config: LoopConfig) -> None:
    """The settings and the lowest validation loss among TensorBoard's hyper-parameters."""
    checkpoints = trainer.checkpoint_callback
    score = getattr(checkpoints, "best_model_score", None)
    values = {name: format_value(value) for name, value in dataclasses.asdict(config).items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and score is not None:
            logger.log_hyperparams(values, {"best/validation_loss": float(score)}, step=trainer.global_step)
            logger.finalize("success")  # it had been closed, and was opened again: a thread for each run


def _validate_end(
    trainer: pl.Trainer, module: SeededModule, validation: BatchLoader, best: Path, last: Path
) -> None:
    """Validate a run that ``steps`` ended inside an epoch, which Lightning does not; keep the better one."""
    monitored = trainer.checkpoint_callback
    if not isinstance(monitored, BestCheckpoint):
        raise TypeError(f"the first checkpoint callback is {monitored!r}; accepted: a BestCheckpoint")
    before = monitored.best_model_score if best.is_file() else None
    # Of a run that was resumed only for this, the loop still has the number of the row before.
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
    (metrics,) = trainer.validate(module, validation, verbose=False)
    if trainer.is_global_zero and (before is None or metrics["validation/loss"] < before):
        unfinished = best.with_suffix(".unfinished")
        shutil.copyfile(last, unfinished)
        os.replace(unfinished, best)
    trainer.strategy.barrier()


def make_trainer(
    config: LoopConfig,
    module: SeededModule,
    callbacks: list[Callback],
    loggers: list[Logger],
    signals: StopSignals,
) -> pl.Trainer:
    """The Trainer for ``config``: checkpoints, early stopping, precision and devices."""
    steps = module.total_steps
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    layout = config.layout
    environment = cluster_environment()
    _, world, local = processes()
    devices = config.devices or local
    last = LastCheckpoint(layout.last, config.checkpoint_every, config.steps, signals)
    checkpoint_callbacks: list[Callback] = [BestCheckpoint(layout.best), last]
    time_limit = [TimeLimit(config.minutes, last)] if config.minutes else []
    stopping = [PatientStopping(config.patience)] if config.patience else []
    bar = [RunBar(steps)] if config.progress else []
    parallel = max(world, devices) > 1
    strategy: Any = DDPStrategy(broadcast_buffers=False) if parallel else "auto"
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=max(1, world // local),
        strategy=strategy,
        plugins=[AtomicCheckpointIO(), environment],
        precision=config.precision,  # type: ignore[arg-type]  # one of PRECISIONS
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        log_every_n_steps=module.log_every,
        logger=loggers,
        callbacks=[*checkpoint_callbacks, *time_limit, *stopping, *bar, *callbacks, TrainingWatch(config)],
        enable_progress_bar=config.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=str(layout.folder),
    )


def load_best(module: SeededModule, checkpoint: Path) -> None:
    """Put the weights of the best checkpoint into the module's model."""
    module.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
