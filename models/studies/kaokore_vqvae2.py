"""VQ-VAE against VQ-VAE-2: losses of three runs, reconstructions, t-SNE, samples.

Published on KaoKore (100 epochs, batch 64, learning rate 1e-4, test set, three runs): commitment 0.0793
(0.0027) against 0.0025 (0.0035), reconstruction 0.0056 (0.0001) against 0.0005 (0.0008).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.autoencoders.base import require_codes
from models.evaluation.judge import Judge
from models.evaluation.pictures import grid, labelled_rows, save_curves, save_image
from models.studies.figures import (
    LOSS_UNITS,
    code_vectors,
    image_vectors,
    reconstructions_over_epochs,
    tsne_by_label,
)
from models.studies.runner import Runner, StudyOptions, mean_std
from models.training.finished import TrainedRun

OPTIONS = ("batch_size", "seeds")
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "epochs": 25,
        "batch_size": 64,
        "lr": 2e-3,
        "hidden": 32,
        "embedding_dim": 16,
        "codebook_size": 64,
        "downscale": 2,
        "downscales": (2, 2),
        "decay": 0.95,
        "kmeans_init": True,
        "dead_code_threshold": 1.0,
    },
    "paper": {
        "data": "kaokore",  # the folder of the repository rois-codh/kaokore, with its images downloaded
        "size": "256",
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-4,
        "downscale": 4,
        "downscales": (4, 2),
    },
}
PRIORS: dict[str, dict[str, Any]] = {
    "small": {
        "prior": "transformer",
        "width": 64,
        "epochs": 60,  # a classifier takes 93% of samples for their class, 75% after 30
        "lr": 2e-3,
        "dropout": 0.3,
        "schedule": "cosine",
    },
    "paper": {
        "prior": "pixelsnail",
        "width": 256,
        "layers": 5,
        "heads": 8,
        "attention": (True, False),
        "epochs": 420,
        "batch_size": 32,
    },
}
SEEDS = 3
PER_CLASS, SHOWN, TEMPERATURE = 50, 12, 0.9
FIGURES = ("commitment", "mse", "ssim", "perplexity", "usage")
PUBLISHED = {
    "vqvae": {"commitment": "0.0793 (0.0027)", "mse": "0.0056 (0.0001)"},
    "vqvae2": {"commitment": "0.0025 (0.0035)", "mse": "0.0005 (0.0008)"},
}


def run(options: StudyOptions) -> Path:
    """Train both models ``seeds`` (``SEEDS``) times; write the table, the figures and samples."""
    seeds = range(SEEDS if options.seeds is None else options.seeds)
    runner = Runner("kaokore-vqvae2", options, SETTINGS, OPTIONS, len(seeds))
    runs = {
        model: [runner.train(f"{model}-seed{seed}", model=model, seed=seed) for seed in seeds]
        for model in ("vqvae", "vqvae2")
    }
    runner.write_table(
        "losses",
        [_row(runner, model, trained) for model, trained in runs.items()],
        f"{_averaged(len(seeds))} on the test split of {runner.data.name}; the published figures are mean "
        f"(standard deviation) over three runs on KaoKore.",
    )
    lines = {
        name: {
            f"{model}, {split}": trained[0].history[f"{split}/{name}"]
            for model, trained in runs.items()
            for split in ("train", "validation")
        }
        for name in ("loss", "reconstruction", "commitment")
    }
    caption = runner.caption("train and validation", "seed")
    seed = f"seed {seeds[0]}, the first of {len(seeds)}"
    save_curves(
        runner.folder / "curves.png", lines, y_labels=LOSS_UNITS, caption=f"{caption}, {seed}", yscale="log"
    )
    first = {model: trained[0] for model, trained in runs.items()}
    layouts = {model: trained.config.layout for model, trained in first.items()}
    caption = runner.caption("validation", "seed")
    reconstructions_over_epochs(runner.folder / "reconstructions.png", layouts, caption=f"{caption}, {seed}")
    _tsne(runner, first)
    _samples(runner, first["vqvae2"])
    return runner.folder


def _averaged(runs: int) -> str:
    return f"Mean (standard deviation) over {runs} runs" if runs > 1 else "One run (no standard deviation)"


def _row(runner: Runner, model: str, runs: list[TrainedRun]) -> dict[str, str]:
    metrics = [runner.evaluate(trained) for trained in runs]
    row = {"model": model}
    for name in FIGURES:
        for key in [key for key in metrics[0] if key == name or key.startswith(f"{name}_")]:
            row[key] = mean_std([float(result[key]) for result in metrics])
    return row | {f"published {name}": value for name, value in PUBLISHED[model].items()}


def _tsne(runner: Runner, runs: dict[str, TrainedRun]) -> None:
    features, labels = {"images": image_vectors(runner.data, "test")}, torch.empty(0)
    for model, trained in runs.items():
        features[f"{model} codes"], labels = code_vectors(require_codes(trained.model), runner.data, "test")
    runner.say("t-SNE of the test images and of their codes")
    names, caption = runner.data.class_names, runner.caption("test")
    tsne_by_label(runner.folder / "tsne.png", features, labels, names, caption=caption)


def _samples(runner: Runner, trained: TrainedRun) -> None:
    """Top codes of a class, bottom codes given them, images: one row a class, and how many show it."""
    store, priors = runner.train_priors(trained, "vqvae2-priors", **PRIORS[runner.options.scale])
    names = runner.data.class_names
    images, labels = runner.sample(trained, priors, store, PER_CLASS, temperature=TEMPERATURE)
    if not names:
        save_image(grid(images, SHOWN), runner.folder / "samples.png")
        return
    rows = images.unflatten(0, (len(names), PER_CLASS))[:, :SHOWN].flatten(0, 1)
    caption = f"{runner.caption('train')}; samples at temperature {TEMPERATURE:g}"
    labelled_rows(runner.folder / "samples.png", rows, names, SHOWN, caption=caption)
    runner.say("training the judge of samples")
    judge = Judge(runner.data.train)
    figures = {"agreement": judge.agreement(images, labels), "judge": judge.accuracy(runner.data.test)}
    runner.write_table(
        "samples",
        [{"samples a class": PER_CLASS, "temperature": TEMPERATURE} | figures],
        f"Agreement: share of the samples that a classifier takes for the class asked for; judge: its "
        f"accuracy on the test split of {runner.data.name}.",
    )
