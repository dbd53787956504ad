"""VAE against VQ-VAE over batch sizes: SSIM and loss.

Published on CIFAR-10 (hidden 128, residual 32, D=64, K=512, EMA, learning rate 5e-4, 40 epochs, batches of
16 to 256): SSIM about 0.78 against above 0.96; training loss of the VQ-VAE at the end 0.076, of which the
reconstruction 0.051 (batch 16), to 0.107 and 0.055 (256).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.evaluation.pictures import grid, save_curves, save_image
from models.evaluation.tables import Row
from models.runs.history import by_epoch
from models.studies.figures import LOSS_UNITS, compare_reconstructions
from models.studies.runner import Runner, StudyOptions
from models.studies.similarity_definitions import DEFINITIONS, similarity_by_definition
from models.training.finished import TrainedRun

OPTIONS = ()
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "epochs": 30,
        "lr": 2e-3,
        "hidden": 32,
        "embedding_dim": 16,
        "codebook_size": 64,
        "downscale": 2,
        "decay": 0.95,
        "kmeans_init": True,
        "dead_code_threshold": 1.0,
        "latent_dim": 16,
        "kl_warmup": 200,
    },
    "real": {
        "data": "cifar10_lossless",  # a folder of tables of lossless images
        "epochs": 4,
        "lr": 5e-4,
        "hidden": 48,
        "downscale": 4,
        "kmeans_init": True,
        "dead_code_threshold": 1.0,
        "latent_dim": 128,
        "kl_warmup": 100,
        "precision": "bf16-mixed",
        "pictures_every": 0,
    },
    "paper": {
        "data": "uoft-cs/cifar10",
        "epochs": 40,
        "lr": 5e-4,
        "downscale": 4,
        "latent_dim": 128,
        "kl_warmup": 2000,
    },
}
BATCH_SIZES = {
    "small": (16, 32, 64),
    "real": (16, 32, 64, 128, 256),
    "paper": (16, 32, 64, 128, 256),
}
# The VAE of the study minimises squared error and KL; a learnt variance balances the two by itself.
MODELS: dict[str, dict[str, Any]] = {
    "vae": {"model": "vae", "likelihood": "gaussian", "beta": 1.0},
    "vqvae": {"model": "vqvae", "likelihood": "mse", "beta": 0.25},
}
# At real scale also, with the largest batch: codes that start at random and stay dead, as published.
STARTS: dict[str, dict[str, Any]] = {
    "real": {"model": "vqvae", "beta": 0.25, "kmeans_init": False, "dead_code_threshold": 0.0},
}
# The two losses are not of one unit, and so no panel holds both.
# Of the VQ-VAE in training, at the end: in all, and the reconstruction alone, by batch size.
PUBLISHED = {16: (0.076, 0.051), 256: (0.107, 0.055)}
SAMPLES = 64
SMALLEST_SIDE = 16  # of images for whose SSIM the definitions are compared
LOSSES = {"vae": "nats a dimension", "vqvae": LOSS_UNITS["loss"]}


def run(options: StudyOptions) -> Path:
    """Train each model with each batch size; write the table, SSIM and loss curves, and pictures."""
    runner = Runner("cifar-vae-vqvae", options, SETTINGS, OPTIONS)
    runs: dict[tuple[str, int], TrainedRun] = {}
    rows: list[Row] = []
    sizes, left_out = _batch_sizes(runner, BATCH_SIZES[options.scale])
    for model, settings in MODELS.items():
        for batch_size in sizes:
            trained = runner.train(f"{model}-batch{batch_size}", batch_size=batch_size, **settings)
            runs[model, batch_size] = trained
            rows.append({"model": model, "batch size": batch_size, **_figures(runner, trained)})
    if options.scale in STARTS:
        name, batch_size = "vqvae, codes at random", sizes[-1]
        trained = runner.train("vqvae-random-start", batch_size=batch_size, **STARTS[options.scale])
        rows.append({"model": name, "batch size": batch_size, **_figures(runner, trained)})
    runner.write_table(
        "ssim",
        rows,
        f"Test split of {runner.data_name}; nmse is the squared error over the variance of the data. "
        f"Published on CIFAR-10: SSIM about 0.78 (VAE) and above 0.96 (VQ-VAE), VQ-VAE reconstruction loss "
        f"0.051 (batch 16) to 0.055 (batch 256).{left_out}",
    )
    caption = runner.caption("validation", "batch_size", "beta")
    for quantity, title, unit in (("ssim", "SSIM", "SSIM"), ("nmse", "squared error", "error / variance")):
        panels = {
            f"{title}, {model}": {
                f"batch {batch_size}": _by_epoch(runs[model, batch_size], quantity) for batch_size in sizes
            }
            for model in MODELS
        }
        units = dict.fromkeys(panels, unit)
        save_curves(
            runner.folder / f"{quantity}.png",
            panels,
            x_label="epoch",
            y_labels=units,
            share_y=True,
            caption=caption,
        )
    losses = {
        f"loss, {model}": {
            f"batch {batch_size}": _by_epoch(runs[model, batch_size], "loss") for batch_size in sizes
        }
        for model in MODELS
    }
    units = {f"loss, {model}": unit for model, unit in LOSSES.items()}
    save_curves(runner.folder / "loss.png", losses, x_label="epoch", y_labels=units, caption=caption)
    _definitions(runner, {model: runs[model, sizes[0]] for model in MODELS}, sizes[0])
    _training(runner, {size: runs["vqvae", size] for size in sizes})
    smallest = sizes[0]  # whose runs did the most steps
    caption = f"{runner.caption('test', 'batch_size', 'beta')}, batch size {smallest}"
    shown = {model: runs[model, smallest].model for model in MODELS}
    compare_reconstructions(runner.folder / "reconstructions.png", runner.data, shown, caption=caption)
    vae: Any = runs["vae", smallest].model
    images, _ = vae.sample(SAMPLES, generator=torch.Generator(runner.device).manual_seed(0))
    save_image(grid(images.clamp(-0.5, 0.5).cpu(), 16), runner.folder / "samples-vae.png")
    return runner.folder


def _figures(runner: Runner, trained: TrainedRun) -> dict[str, float]:
    """Of the test split; perplexity and usage of codes where the model has them."""
    metrics = runner.evaluate(trained)
    names = ("ssim", "nmse", "mse", "psnr", "perplexity", "usage")
    return {name: float(metrics[name]) for name in names if name in metrics}


def _definitions(runner: Runner, runs: dict[str, TrainedRun], batch_size: int) -> None:
    """SSIM of the same reconstructions by several definitions, where images are large enough for all."""
    if min(runner.data.size) < SMALLEST_SIDE:
        return
    values = {model: similarity_by_definition(run.model, runner.data) for model, run in runs.items()}
    rows: list[Row] = [
        {"definition": name} | {model: values[model][name] for model in runs} for name in DEFINITIONS
    ]
    runner.write_table(
        "definitions",
        rows,
        f"SSIM of the reconstructions of the runs with batch size {batch_size}, mean over 1,000 images of "
        f"the test split of {runner.data_name} or all there are. Published, without a definition: about "
        f"0.78 (VAE) and above 0.96 (VQ-VAE).",
    )


def _training(runner: Runner, runs: dict[int, TrainedRun]) -> None:
    """The training loss of the VQ-VAE over epochs, and where it ends beside the published values."""
    rows: list[Row] = []
    panels: dict[str, dict[str, Any]] = {"loss": {}, "reconstruction": {}}
    for size, run in runs.items():
        steps = len(runner.data.train) // size
        row: dict[str, str | float | int] = {"batch size": size}
        for place, (name, lines) in enumerate(panels.items()):
            lines[f"batch {size}, train"] = by_epoch(run.history[f"train/{name}"], steps)
            row[f"training {name}"] = lines[f"batch {size}, train"][1][-1]
            row[f"published {name}"] = PUBLISHED[size][place] if size in PUBLISHED else ""
        rows.append(row)
    runner.write_table(
        "training",
        rows,
        f"Mean over the last epoch on the training split of {runner.data_name}; published on CIFAR-10.",
    )
    path, caption = runner.folder / "training-loss.png", runner.caption("train", "batch_size")
    save_curves(path, panels, x_label="epoch", y_labels=LOSS_UNITS, caption=caption)


def _batch_sizes(runner: Runner, all_sizes: tuple[int, ...]) -> tuple[list[int], str]:
    """The sizes that the training split fills, and a sentence about the others. ValueError if none are."""
    images = len(runner.data.train)
    sizes = [size for size in all_sizes if size <= images]
    if not sizes:
        raise ValueError(
            f"{runner.data.name} has {images} training images, fewer than the smallest batch of "
            f"{all_sizes[0]}; give more (--limit)"
        )
    others = ", ".join(str(size) for size in all_sizes if size not in sizes)
    return sizes, f" Left out, as there are {images} training images: batches of {others}." if others else ""


def _by_epoch(trained: TrainedRun, name: str) -> tuple[list[float], list[float]]:
    """The validation values against epochs, so that batch sizes share an axis."""
    values = trained.history[f"validation/{name}"][1]
    return [float(epoch) for epoch in range(1, len(values) + 1)], values
