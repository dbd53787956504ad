"""Training an autoencoder from settings to a folder of results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.autoencoders.base import Autoencoder
from models.data import BatchLoader, ImageData
from models.data.given import load_or_take
from models.data.kinds import Kind
from models.data.sources import GIVEN
from models.evaluation.calibration import calibrate
from models.evaluation.pictures import save_curves
from models.runs.build import build_model
from models.runs.config import TrainConfig
from models.runs.data import data_of_run, store_data
from models.runs.history import curves_of, read_history
from models.runs.open import load_pretrained, start_from
from models.runs.reproducible import seed_run
from models.runs.start import started_run
from models.training.callbacks import ReconstructionPictures
from models.training.loop import (
    check_start,
    fit,
    load_best,
    nothing_left,
    training_loader,
)
from models.training.memory_format import weights_contiguous_
from models.training.modules import AutoencoderModule
from models.training.processes import processes
from models.training.rehearsal import Plan, StepTimer, rehearse

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


def train(
    config: TrainConfig | None = None,
    data: Any = None,
    *,
    model: Autoencoder | None = None,
    resume: bool | str = False,
    overwrite: bool = False,
) -> Autoencoder:
    """Train and return the model with the lowest validation loss, on the CPU in eval mode.

    Without ``model`` and ``data`` both are what ``config`` says. ``model`` is one of your own, a subclass of
    :class:`models.autoencoders.base.Autoencoder`, which goes on from its weights; the settings of models
    are not for it. ``data`` is images in any form that :func:`models.data.given.as_image_data` takes.

    ``RUNS/NAME`` then holds ``config.yaml``, ``model/`` (for ``from_pretrained``), ``checkpoints/`` (best
    and last), ``logs/`` (CSV), ``tensorboard/``, ``reconstructions/`` and ``curves.png``. With ``resume``
    the run goes on from its last checkpoint as if it had not been interrupted; with ``resume="auto"`` it does
    where there is one. Where it has done more than ``config`` asks for, nothing changes. Raises DataError
    or ValueError before training starts, and TrainingStopped, a KeyboardInterrupt, when SIGINT, SIGTERM or
    SIGUSR1 has ended it after a step, which is then saved.
    """
    config = _with_given(TrainConfig() if config is None else config, data, model)
    resume = check_start(config, resume, overwrite)
    if resume and nothing_left(config, [config.layout.model]):
        trained: Any = load_pretrained(config.layout.model)
        return trained
    images = _load(config, data)
    if resume and processes()[0] == 0:
        images = data_of_run(config.layout, images, config, config)
    return _train(config, images, resume, overwrite, model)[0]


def plan(config: TrainConfig, data: Any = None) -> Plan:
    """What :func:`train` with ``config`` would take, from a few steps that leave nothing behind.

    Raises as :func:`train` does before training starts.
    """
    check_start(config, False, True)
    start = time.perf_counter()
    images = _load(config, data)
    images = dataclasses.replace(images, known_variance=images.variance)
    setup = time.perf_counter() - start

    def run(few: TrainConfig, timer: StepTimer) -> AutoencoderModule:
        few = few.replace(pictures_every=min(1, config.pictures_every))
        return _train(few, images, False, False, None, [timer])[1]

    batches = -(-len(images.validation) // config.batch_size)
    return rehearse(config, run, batches, config.pictures_every, setup)


def _with_given(config: TrainConfig, data: Any, model: Autoencoder | None) -> TrainConfig:
    """The settings with what was given in Python in place of what they would name. TypeError."""
    if data is not None and not isinstance(data, ImageData):
        config = config.replace(data=GIVEN)
    if model is None:
        return config
    if not isinstance(model, Autoencoder):
        raise TypeError(
            f"model is a {type(model).__name__}; accepted: a subclass of models.autoencoders.base.Autoencoder"
        )
    return config.replace(model=f"{type(model).__module__}.{type(model).__qualname__}")


def _load(config: TrainConfig, given: Any) -> ImageData:
    data = load_or_take(given, config, progress=config.progress)
    if processes()[0] == 0 and not isinstance(given, ImageData):
        print(data.describe(), flush=True)
    return data


def untrained(
    config: TrainConfig, data: ImageData, given: Autoencoder | None = None, *, init: bool = True
) -> Autoencoder:
    """The model as training begins with it: ``given`` or built, with the weights of ``config.init``.

    ValueError or FileNotFoundError if it cannot be had, or does not take the data.
    """
    model = build_model(config, data) if given is None else given
    model.check_size(data)
    if config.init is not None and init:
        start_from(model, config.init)
    return model


def _train(
    config: TrainConfig,
    data: ImageData,
    resume: bool,
    overwrite: bool,
    given: Autoencoder | None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Autoencoder, AutoencoderModule]:
    """The trained model, and the module that held it in training."""
    seed_run(config.seed)
    model = untrained(config, data, given, init=not resume)
    rank, world, _ = processes()
    loader = training_loader(data.train, config, world, rank)
    validation = BatchLoader(data.validation, config.batch_size, rank=rank, world=world)
    module = AutoencoderModule(model, config, loader, data.variance)
    pictures: list[Callback] = []
    if config.pictures_every:
        images = data.validation.batch(range(min(64, len(data.validation))))
        pictures = [ReconstructionPictures(images, data.kind, config.layout, config.pictures_every)]
    with started_run(config, module, resume, overwrite, rank) as checkpoint:
        if rank == 0:
            store_data(config.layout, data)
            if given is not None:
                given.save_description(config.layout.model)
        load_best(module, fit(config, module, validation, [*callbacks, *pictures], checkpoint))
        model = model.cpu().eval()
        weights_contiguous_(model)
        calibrate(model, data.validation, config.batch_size)
        if rank == 0:
            model.save_pretrained(config.layout.model)
            save_training_curves(config, data.kind)
    return model, module


def save_training_curves(config: TrainConfig, kind: Kind) -> Path:
    """``curves.png`` in the run's folder: losses, and how the codes are used, over the steps."""
    history = read_history(config.folder)
    is_vae, error = config.model == "vae", "squared error / variance"
    if config.variance is not None:
        error = "squared error" + (f" / {config.variance:g}" if config.variance != 1 else "")
    if config.likelihood != "mse":
        error = "nats a dimension"
    shown = {name: figure for name, figure in kind.figures.items() if figure.is_drawn}
    # By title: the logged quantity, whose name a level may follow, and its unit.
    quantities = {
        "loss": ("loss", f"{error}\n+ weighted {'KL' if is_vae else 'commitment'}"),
        "reconstruction loss": ("reconstruction", error),
        "KL divergence": ("kl", "nats a dimension"),
        "commitment": ("commitment", "squared distance"),
        **{figure.title: (name, figure.unit) for name, figure in shown.items()},
        "perplexity": ("perplexity", "codes"),
        "usage": ("usage", "share of codes"),
    }
    panels = {title: curves_of(history, name) for title, (name, _) in quantities.items()}
    units = {title: unit for title, (_, unit) in quantities.items()}
    caption = (
        f"{config.data}, {config.model}; seed {config.seed}, batch size {config.batch_size}, lr {config.lr:g}"
    )
    return save_curves(config.layout.curves, panels, y_labels=units, caption=caption)
