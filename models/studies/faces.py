"""Class-conditional samples of a hierarchy that show what they are of: the faces of `kaokore-vqvae2`.

What each setting is for: a bottom level that is dropped for a third of the images leaves the layout to the
top one; crop, one orientation and augmented copies make few images go further; guidance, and ranking by the
priors' own posterior, make samples follow their class; rejection by a classifier keeps those that look most
like decoded codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from models.autoencoders.discrete import require_codes
from models.codes.store import CodeStore
from models.data import DataConfig, ImageData, load_data
from models.data.augment import AugmentSettings
from models.data.columns import JOINED, label_columns
from models.data.sources import open_source
from models.data.splits import named_splits
from models.evaluation.drawn import decoded_codes, draw_neighbours, flat_figures, measure_stages
from models.evaluation.judge import Judge
from models.evaluation.pictures import grid, labelled_rows, save_image
from models.evaluation.selection import Drawing, draw_stages
from models.files import write_whole
from models.runs.priors import class_rows, mixed_labels
from models.studies.runner import Runner
from models.training.finished import TrainedRun

COLUMNS_SHOWN = 8  # of a picture of samples

# By scale: settings of the data and the autoencoder, of the copies that are encoded, of the prior of each
# level, of the draws, and how many samples of a row (a gender, or a class) are measured and shown.
FACES: dict[str, dict[str, Any]] = {
    "real": {
        "model": {
            "size": "32",
            "crop": 0.7,
            "orient": True,
            "downscales": (4, 2),
            "hidden": 96,
            "embedding_dim": 32,
            "codebook_size": 256,
            "decay": 0.98,
            "kmeans_init": True,
            "dead_code_threshold": 1.0,
            "level_dropout": (0.0, 0.35),
            "l1": 1.2,
            "gradient_l1": 4.0,
            "zoom": 0.1,
            "shift": 0.05,
            "batch_size": 32,
            "epochs": 30,
            "lr": 1e-3,
            "schedule": "cosine",
        },
        "copies": 6,
        "levels": (
            {"width": 192, "layers": 5, "heads": 6, "batch_size": 64, "lr": 1e-3, "epochs": 6},
            {"width": 128, "layers": 4, "heads": 4, "batch_size": 32, "lr": 1e-3, "epochs": 10},
        ),
        "priors": {
            "dropout": 0.0,
            "weight_decay": 0.1,
            "label_dropout": 0.12,
            "patience": 3,
            "schedule": "cosine",
            "warmup": 100,
            "precision": "bf16-mixed",
        },
        "drawing": {
            "temperature": 0.8,
            "top_p": (0.9, 0.95),
            "guidance": (2.5, 1.3),
            "best_of": 4,
            "reject": 12,
        },
        "measured": 100,
        "shown": 32,
    },
}


def draw_faces(runner: Runner, columns: Sequence[str]) -> None:
    """Train autoencoder and priors for samples; write pictures of them, of their neighbours, and their
    figures.

    columns: of labels, whose combinations are the classes where the data have them all.
    """
    how = FACES[runner.options.scale]
    given = {
        name: value for name, value in runner.given.items() if name != "data"
    }  # as runner.config has them
    settings: dict[str, Any] = how["model"] | given
    if len(other_columns(runner.config, columns)) + 1 == len(columns):
        settings["label_column"] = ",".join(columns)
    config = runner.config.replace(model="vqvae2", **settings)
    data = load_data(config, progress=runner.options.progress)
    run = runner.train("faces", data, model="vqvae2", **settings)
    changes = AugmentSettings(mirror=config.mirror, zoom=config.zoom, shift=config.shift)
    store = runner.encode(run, data, copies=how["copies"], augmentation=changes)
    priors: list[Any] = []
    above: dict[str, str] = {}
    for level, own in enumerate(how["levels"]):
        name = f"faces-level{level}"
        _, (prior,) = runner.train_priors(run, name, store, level=level, **above, **how["priors"], **own)
        priors.append(prior)
        above = {"above": str(runner.folder / name)}
    _draw(runner, run, data, store, priors, how)


def other_columns(config: DataConfig, columns: Sequence[str]) -> list[str]:
    """Those of ``columns`` that the data have beside the one that ``config`` names, by default the last one.

    Empty where the data lack any of them.
    """
    splits, _ = named_splits(open_source(config).splits, config)
    has_all = set(columns) <= set(splits["train"].column_names)
    chosen = columns[-1] if config.label_column is None else config.label_column
    return [column for column in columns if has_all and column != chosen]


def _draw(
    runner: Runner,
    run: TrainedRun,
    data: ImageData,
    store: CodeStore,
    priors: Sequence[Any],
    how: dict[str, Any],
) -> None:
    progress, names = runner.options.progress, data.class_names or ("",)
    model, drawing = require_codes(run.model), Drawing(**how["drawing"])
    count, seed = how["measured"], runner.options.seed
    rows = _rows(data, priors[0].num_classes)
    frequencies = store.train.label_counts(len(names))
    labels = torch.cat([mixed_labels(members, count, frequencies) for _, members in rows])
    real = decoded_codes(model, store, "train")
    generator = torch.Generator(runner.device).manual_seed(seed)
    runner.say(
        f"drawing {len(labels) * drawing.best_of * drawing.reject} samples, of which {len(labels)} are kept"
    )
    shapes = store.description.shapes
    stages = draw_stages(
        model,
        priors,
        shapes,
        labels.to(runner.device),
        drawing,
        real=real,
        generator=generator,
        progress=progress,
    )
    judge = None
    if data.class_names:
        judge = Judge(data.train, model="cnn", seed=seed, device=runner.device, progress=progress)
    column = data.settings["label_column"]
    figures = measure_stages(
        stages,
        labels,
        data.class_names,
        column,
        judge=judge,
        real=real,
        device=runner.device,
        progress=progress,
    )
    if judge is not None and data.test.labels is not None:
        test = data.test.batch(range(len(data.test)))
        figures["real test images"] = {"judge": judge.by_class(test, data.test.labels, names, column)}
    caption = f"{runner.data_name}: samples in the order in which they were drawn; seed {seed}"
    for stage, drawn in stages.items():
        shown = drawn.images.unflatten(0, (len(rows), count))[:, : how["shown"]].flatten(0, 1)
        path = runner.folder / f"faces-{stage}.png"
        if data.class_names:
            labelled_rows(path, shown, [name for name, _ in rows], COLUMNS_SHOWN, f"{caption}; {stage}")
        else:
            save_image(grid(shown, COLUMNS_SHOWN), path)
    kept = list(stages.values())[-1].images
    spread = kept.unflatten(0, (len(rows), count)).transpose(0, 1).flatten(0, 1)  # rows by turns
    path, held_out = runner.folder / "faces-neighbours.png", decoded_codes(model, store, "test")
    figures["squared error to the nearest training image"] = draw_neighbours(
        path, spread, real, held_out, data.kind
    )
    nats = [
        json.loads((runner.folder / f"faces-level{level}" / "nats.json").read_text())
        for level in range(len(priors))
    ]
    figures["nats a code"] = {name: values for one in nats for name, values in _by_level(one).items()}
    write_whole(runner.folder / "faces.json", json.dumps(figures, indent=2) + "\n")
    runner.write_table("faces", [{"figure": name, "value": value} for name, value in flat_figures(figures)])


def _rows(data: ImageData, classes: int | None) -> list[tuple[str, list[int]]]:
    """What is drawn evenly, and the labels of each: the first column's part of classes that combine columns,
    so that rare combinations are drawn as rarely as the data have them; otherwise the classes."""
    first = dict.fromkeys(name.split(JOINED)[0] for name in data.class_names)
    is_joined = len(label_columns(data.settings["label_column"])) > 1
    return class_rows(",".join(first) if is_joined else None, data.class_names, classes)


def _by_level(nats: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """``{"top": {"held out": ...}}`` from ``{"held out": {"nats_per_code_top": ...}}``."""
    keys = next(iter(nats.values()))
    return {
        key.removeprefix("nats_per_code_"): {split: values[key] for split, values in nats.items()}
        for key in keys
    }
