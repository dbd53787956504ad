"""Training an autoencoder from settings to a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.data import BatchLoader, ImageData, load_data
from models.evaluation.calibration import calibrate
from models.evaluation.pictures import save_curves
from models.runs.build import build_model
from models.runs.config import TrainConfig
from models.runs.history import curves_of, read_history
from models.runs.open import start_from
from models.runs.reproducible import seed_run
from models.runs.start import started_run
from models.training.callbacks import ReconstructionPictures
from models.training.loop import (
    check_start,
    fit,
    load_best,
    training_loader,
)
from models.training.modules import AutoencoderModule
from models.training.processes import processes

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from models.autoencoders.base import Autoencoder


def train(
    config: TrainConfig, data: ImageData | None = None, *, resume: bool | str = False, overwrite: bool = False
) -> Autoencoder:
    """Train and return the model with the lowest validation loss, on the CPU in eval mode.

    ``RUNS/NAME`` then holds ``config.yaml``, ``model/`` (for ``from_pretrained``), ``checkpoints/`` (best
    and last), ``logs/`` (CSV), ``tensorboard/``, ``reconstructions/`` and ``curves.png``. With ``resume``
    the run goes on from its last checkpoint as if it had not been interrupted; with ``resume="auto"`` it does
    where there is one. Raises DataError or ValueError before training starts, and TrainingStopped, a
    KeyboardInterrupt, when SIGINT, SIGTERM or SIGUSR1 has ended it after a step, which is then saved.
    """
    resume = check_start(config, resume, overwrite)
    if data is None:
        data = load_data(config, progress=config.progress)
        if processes()[0] == 0:
            print(data.describe(), flush=True)
    seed_run(config.seed)
    model = build_model(config, data)
    if config.init is not None and not resume:
        start_from(model, config.init)
    rank, world, _ = processes()
    loader = training_loader(data.train, config, world, rank)
    validation = BatchLoader(data.validation, config.batch_size, rank=rank, world=world)
    module = AutoencoderModule(model, config, loader, data.variance)
    pictures: list[Callback] = []
    if config.pictures_every:
        images = data.validation.batch(range(min(64, len(data.validation))))
        pictures = [ReconstructionPictures(images, config.layout, config.pictures_every)]
    with started_run(config, module, resume, overwrite, rank) as checkpoint:
        load_best(module, fit(config, module, validation, pictures, checkpoint))
        model = model.cpu().eval()
        calibrate(model, data.validation, config.batch_size)
        if rank == 0:
            model.save_pretrained(config.layout.model)
            save_training_curves(config)
    return model


def save_training_curves(config: TrainConfig) -> Path:
    """``curves.png`` in the run's folder: losses, and how the codes are used, over the steps."""
    history = read_history(config.folder)
    is_vae, error = config.model == "vae", "squared error / variance"
    if config.likelihood != "mse":
        error = "nats a dimension"
    # By title: the logged quantity, whose name a level may follow, and its unit.
    quantities = {
        "loss": ("loss", f"{error}\n+ weighted {'KL' if is_vae else 'commitment'}"),
        "reconstruction loss": ("reconstruction", error),
        "KL divergence": ("kl", "nats a dimension"),
        "commitment": ("commitment", "squared distance"),
        "SSIM": ("ssim", "SSIM"),
        "perplexity": ("perplexity", "codes"),
        "usage": ("usage", "share of codes"),
    }
    panels = {title: curves_of(history, name) for title, (name, _) in quantities.items()}
    units = {title: unit for title, (_, unit) in quantities.items()}
    caption = (
        f"{config.data}, {config.model}; seed {config.seed}, batch size {config.batch_size}, lr {config.lr:g}"
    )
    return save_curves(config.layout.curves, panels, y_labels=units, caption=caption)
