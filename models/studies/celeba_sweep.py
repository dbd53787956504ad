"""VQ-VAE over beta, learning rate and codebook size; the best setting trained longer.

Published on CelebA at 64 x 64 (beta 0.25 to 1.75, learning rates 1e-3 to 1e-5, K 128 to 512, 10,000
iterations of 256 images): best K=512, beta=1.25, lr=1e-3, with a perplexity above 400 and an error of about
1e-3 by iteration 4,000.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.evaluation.pictures import save_curves
from models.evaluation.tables import Row
from models.studies.figures import LOSS_UNITS, compare_reconstructions
from models.studies.runner import Runner, StudyOptions
from models.training.finished import TrainedRun
from models.training.sweep import grid as combinations

OPTIONS = ("batch_size",)
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "steps": 120,
        "epochs": 1000,
        "batch_size": 64,
        "hidden": 32,
        "embedding_dim": 16,
        "downscale": 2,
        "pictures_every": 0,
    },
    "paper": {
        "data": "nielsr/CelebA-faces",
        "size": "64",
        "steps": 10_000,
        "epochs": 1000,
        "batch_size": 256,
        "downscale": 4,
        "pictures_every": 0,
    },
}
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "small": {"beta": (0.25, 0.75, 1.25, 1.75), "lr": (1e-2, 1e-3, 1e-4), "codebook_size": (16, 32, 64)},
    "paper": {"beta": (0.25, 0.75, 1.25, 1.75), "lr": (1e-3, 1e-4, 1e-5), "codebook_size": (128, 256, 512)},
}
LONGER = {"small": 800, "paper": 20_000}


def run(options: StudyOptions) -> Path:
    """Train every setting, rank them by held-out error, train the best one for longer."""
    runner = Runner("celeba-sweep", options, SETTINGS, OPTIONS)
    grid = GRIDS[options.scale]
    swept = runner.sweep(combinations(grid))
    runs = {tuple(one.case.values()): one.run for one in swept}
    shown = ("mse", "nmse", "ssim", "perplexity", "usage")
    ranked: list[Row] = [dict(one.case) | {key: one.figures[key] for key in shown} for one in swept]
    runner.write_table(
        "sweep",
        ranked,
        f"Validation split of {runner.data.name}, best first. Published best: K=512, beta=1.25, lr=1e-3.",
    )
    best = dict(swept[0].case)
    for parameter in grid:
        _curves(runner, runs, grid, best, parameter)
    longer = runner.train("best", **best, steps=LONGER[options.scale])
    metrics = runner.evaluate(longer)
    figures = {name: metrics[name] for name in ("mse", "nmse", "psnr", "ssim", "perplexity", "usage")}
    done = {"steps": runner.steps(longer)}  # fewer with few epochs
    runner.write_table("best", [best | done | figures], f"Test split of {runner.data.name}.")
    history = longer.history
    save_curves(
        runner.folder / "best.png",
        {name: {"train": history[f"train/{name}"], "validation": history[f"validation/{name}"]}
         for name in ("loss", "reconstruction", "perplexity")},
        x_label="iteration",
        y_labels=LOSS_UNITS,
        caption=f"{runner.caption('train and validation', *grid)}, {_setting(best)}",
    )  # fmt: skip
    compare_reconstructions(
        runner.folder / "reconstructions.png",
        runner.data,
        {"best setting": longer.model},
        caption=f"{runner.caption('test', *grid)}, {_setting(best)}",
    )
    return runner.folder


def _curves(
    runner: Runner,
    runs: dict[tuple[Any, ...], TrainedRun],
    grid: dict[str, tuple[Any, ...]],
    best: dict[str, Any],
    parameter: str,
) -> None:
    """Loss and perplexity over the iterations while ``parameter`` moves away from the best setting."""
    lines = {}
    for value in grid[parameter]:
        setting = best | {parameter: value}
        lines[f"{parameter}={value:g}"] = runs[tuple(setting[name] for name in grid)].history
    # The loss holds beta times the commitment: over beta it compares quantities of different meaning.
    quantities = ("reconstruction", "commitment", "perplexity")
    if parameter != "beta":
        quantities = ("loss", "reconstruction", "perplexity")
    panels = {
        name: {label: history[f"train/{name}"] for label, history in lines.items()} for name in quantities
    }
    held_fixed = {name: value for name, value in best.items() if name != parameter}
    save_curves(
        runner.folder / f"over-{parameter}.png",
        panels,
        x_label="iteration",
        y_labels=LOSS_UNITS,
        caption=f"{runner.caption('train', *grid)}, {_setting(held_fixed)}",
    )


def _setting(values: dict[str, Any]) -> str:
    """``beta=0.25, lr=0.001``: settings as the runs' names have them."""
    return ", ".join(f"{name}={value:g}" for name, value in values.items())
