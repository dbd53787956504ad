"""VQ-VAE over beta, learning rate and codebook size; the best setting trained longer.

Published on CelebA at 64 x 64 for eight settings (beta 0.25 to 1.75, learning rates 1e-3 to 1e-5, K 128 to
512, 10,000 iterations of 256 images): best K=512, beta=1.25, lr=1e-3, with a perplexity above 400 and an
error of about 1e-3 by iteration 4,000; the perplexity is near its best after about 2,000, 5,500 and 6,000
iterations with K = 128, 256 and 512. Settings are compared on a part of the images, the best one is
trained on all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.evaluation.pictures import save_curves
from models.evaluation.tables import Row
from models.runs.history import first_within
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
    "real": {
        "data": "celeba64",  # a folder of tables; no picture of these faces may be published
        "size": "32",
        "steps": 100,
        "epochs": 1000,
        "batch_size": 32,
        "hidden": 48,
        "downscale": 4,
        "kmeans_init": True,
        "dead_code_threshold": 1.0,
        "precision": "bf16-mixed",
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
GRIDS["real"] = GRIDS["paper"]
# beta, learning rate, K: as published, and those that stand for them at small scale.
PUBLISHED: dict[str, tuple[tuple[float, float, int], ...]] = {
    "small": (
        *((1.25, 1e-2, 16), (1.25, 1e-2, 32)),
        *((beta, 1e-2, 64) for beta in (0.25, 0.75, 1.25, 1.75)),
        *((1.25, 1e-3, 64), (1.25, 1e-4, 64)),
    ),
    "paper": (
        *((1.25, 1e-3, 128), (1.25, 1e-3, 256)),
        *((beta, 1e-3, 512) for beta in (0.25, 0.75, 1.25, 1.75)),
        *((1.25, 1e-4, 512), (1.25, 1e-5, 512)),
    ),
}
PUBLISHED["real"] = PUBLISHED["paper"]
PUBLISHED_ITERATIONS = {128: 2000, 256: 5500, 512: 6000}
TUNED_ON = {"small": 600, "real": 4000, "paper": 20_000}  # images of each split
NEAR = 0.05  # a perplexity is near its best within this share
LONGER = {"small": 800, "real": 800, "paper": 20_000}
# At real scale trained as long as the best setting; they differ in size and start alone: codes that start at
# random and stay dead, as published. The sweep, in so few steps, would compare collapsed codebooks.
_AT_RANDOM = {"kmeans_init": False, "dead_code_threshold": 0.0}
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "real": {f"K = {size}, codes at random": {"codebook_size": size} | _AT_RANDOM for size in (128, 256, 512)}
}


def run(options: StudyOptions) -> Path:
    """Train every setting, rank them by held-out error, train the best one for longer."""
    runner = Runner("celeba-sweep", options, SETTINGS, OPTIONS)
    grid = GRIDS[options.scale]
    limit = TUNED_ON[options.scale] if options.limit is None else options.limit
    swept = runner.sweep(combinations(grid), limit)
    runs = {tuple(one.case.values()): one.run for one in swept}
    shown = ("mse", "nmse", "ssim", "perplexity", "usage")
    ranked: list[Row] = [dict(one.case) | {key: one.figures[key] for key in shown} for one in swept]
    runner.write_table(
        "sweep",
        ranked,
        f"Validation split of {runner.data_name}, best first, of at most {limit} images a split. "
        f"Published best: "
        f"K=512, beta=1.25, lr=1e-3.",
    )
    _published(runner, runs)
    _iterations(runner, runs)
    best = dict(swept[0].case)
    for parameter in grid:
        _curves(runner, runs, grid, best, parameter)
    longer = _longer(runner, best)
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


def _longer(runner: Runner, best: dict[str, Any]) -> TrainedRun:
    """The best setting trained for longer on all images, and what is like it: ``best.md``, ``longer.png``."""
    steps = LONGER[runner.options.scale]
    runs = {"best": runner.train("best", **best, steps=steps)}
    for name, changes in OTHERS.get(runner.options.scale, {}).items():
        folder = f"longer-K{changes['codebook_size']}"
        runs[name] = runner.train(folder, **best | changes, steps=steps)
    rows: list[Row] = []
    for name, run in runs.items():
        metrics = runner.evaluate(run)
        figures = {key: metrics[key] for key in ("mse", "nmse", "psnr", "ssim", "perplexity", "usage")}
        near = first_within(run.history["train/perplexity"], NEAR)
        done = {"steps": runner.steps(run)}  # fewer with few epochs
        since = {"near its best from": "" if near is None else int(near) + 1}
        setting = {key: getattr(run.config, key) for key in best}
        rows.append({"run": name} | setting | done | figures | since)
    caption = (
        f"Test split of {runner.data_name}. Near its best: the perplexity in training, within {NEAR:.0%}."
    )
    runner.write_table("best", rows, caption)
    if len(runs) > 1:
        panels = {
            key: {name: run.history[f"train/{key}"] for name, run in runs.items()}
            for key in ("reconstruction", "perplexity")
        }
        caption = runner.caption("train", *GRIDS[runner.options.scale])
        path = runner.folder / "longer.png"
        save_curves(path, panels, x_label="iteration", y_labels=LOSS_UNITS, caption=caption)
    return runs["best"]


def _published(runner: Runner, runs: dict[tuple[Any, ...], TrainedRun]) -> None:
    """Loss and perplexity over the iterations for the eight published settings, or for all others."""
    chosen = {values: runs[values] for values in PUBLISHED[runner.options.scale] if values in runs} or runs
    panels = {
        name: {
            f"beta={beta:g}, lr={lr:g}, K={codes}": run.history[f"train/{name}"]
            for (beta, lr, codes), run in chosen.items()
        }
        for name in ("loss", "perplexity")
    }
    caption = runner.caption("train", "beta", "lr", "codebook_size")
    path = runner.folder / "published.png"
    save_curves(path, panels, x_label="iteration", y_labels=LOSS_UNITS, caption=caption)


def _iterations(runner: Runner, runs: dict[tuple[Any, ...], TrainedRun]) -> None:
    """For each setting how many iterations its perplexity takes to come near its best."""
    rows: list[Row] = []
    for (beta, lr, codes), run in runs.items():
        perplexity = run.history["train/perplexity"]
        step = first_within(perplexity, NEAR)
        row = {"codebook_size": codes, "beta": beta, "lr": lr, "best perplexity": max(perplexity[1])}
        published = PUBLISHED_ITERATIONS.get(codes, "") if (beta, lr) == (1.25, 1e-3) else ""
        rows.append(row | {"iterations": "" if step is None else int(step) + 1, "published": published})
    rows.sort(key=lambda row: (float(row["codebook_size"]), float(row["beta"]), float(row["lr"])))
    runner.write_table(
        "iterations", rows, f"Iterations until the perplexity in training is within {NEAR:.0%} of its best."
    )


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
