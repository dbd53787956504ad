"""The part of ``sample`` for priors over codes: draws, choice among them, pictures and figures."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.autoencoders.discrete import DiscreteAutoencoder, require_codes
from models.cli.flags import check_output
from models.cli.latents import write_samples
from models.cli.room import check_room
from models.codes.description import CodeDescription
from models.codes.store import CodeStore
from models.data import ImageData
from models.data.columns import label_columns
from models.data.kinds import Kind, kind_of_settings
from models.evaluation.drawn import decoded_codes, describe, draw_neighbours, measure_stages
from models.evaluation.judge import Judge
from models.evaluation.pictures import grid, labelled_rows, save_image
from models.evaluation.realism import LEAST_COMPARED
from models.evaluation.selection import Drawing, Stage, draw_stages
from models.files import write_whole
from models.priors.base import AutoregressivePrior
from models.progress import progress_bar
from models.runs.config import PriorConfig
from models.runs.export import say_if_unfinished, usable_model
from models.runs.layout import RunLayout
from models.runs.open import load_pretrained
from models.runs.pictures import made_of
from models.runs.priors import check_prior_of, class_rows, judge_data, mixed_labels


def draw_and_measure(
    arguments: argparse.Namespace, layout: RunLayout, priors: Sequence[AutoregressivePrior], device: str
) -> None:
    """Write ``samples.png``, ``codes.npz`` and what else the flags ask for. ValueError."""
    how = Drawing(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        guidance=1.0 if arguments.guidance is None else [1.0 if s is None else s for s in arguments.guidance],
        best_of=1 if arguments.best_of is None else arguments.best_of,
        reject=1 if arguments.reject is None else arguments.reject,
    )
    if arguments.judge is None and arguments.judge_model != "svm":
        raise ValueError(
            f"judge_model is {arguments.judge_model} without --judge; accepted: with --judge DATA"
        )
    description = CodeDescription.load(layout.folder)
    decoder = usable_model(arguments.model or description.model)
    check_prior_of(layout.folder, decoder)
    say_if_unfinished(decoder)
    loaded: Any = load_pretrained(decoder, device)
    model, kind = require_codes(loaded), kind_of_settings(description.settings)
    rows = class_rows(arguments.classes, description.class_names, priors[0].num_classes)
    drawn = len(rows) * arguments.count * how.reject + how.best_of - 1  # best_of for one after the other
    codes = sum(math.prod(shape) for shape in description.shapes)
    check_room(arguments.count, drawn, kind.channels * math.prod(kind.size), codes)
    folder = check_output(arguments.out or layout.samples, layout.folder, folder=True)
    needs_real = how.reject > 1 or arguments.two_sample or arguments.neighbours
    is_mixed = arguments.mix == "training"
    if arguments.codes is not None and not (needs_real or is_mixed):
        raise ValueError(
            f"codes is {arguments.codes}; accepted: with --reject of at least 2, --two-sample, --neighbours "
            f"or --mix training"
        )
    if is_mixed and all(len(members) == 1 for _, members in rows):
        raise ValueError(
            "mix is training, where no name stands for several classes; accepted: equal, or --classes with a "
            "part of such names as female+noble"
        )
    store = _real_codes(arguments.codes, layout, description) if needs_real or is_mixed else None
    shares = _label_counts(store, description) if store and is_mixed else None
    labels = torch.cat([mixed_labels(members, arguments.count, shares) for _, members in rows])
    compared = len(labels) if arguments.two_sample else len(labels) * how.reject
    if (arguments.two_sample or how.reject > 1) and compared < LEAST_COMPARED:
        raise ValueError(
            f"count is {arguments.count}, which makes {compared} samples to tell from real codes; accepted: "
            f"at least {LEAST_COMPARED} in all"
        )
    real = decoded_codes(model, store, "train") if store is not None and needs_real else None
    data, judge = None, None
    if arguments.judge is not None:
        data = judge_data(arguments.judge, layout.folder, priors, description)
        print(f"training a classifier on {data.describe()}", flush=True)
        judge = Judge(data.train, model=arguments.judge_model, device=device, progress=True)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    codes *= len(labels) * how.best_of * how.reject
    with made_of(folder, layout, arguments.model or description.model):
        with progress_bar(codes, "sample", "code", enabled=True) as bar:
            stages = draw_stages(
                model,
                priors,
                description.shapes,
                labels.to(device),
                how,
                real=real,
                generator=generator,
                on_drawn=bar.update,
                progress=True,
            )
        names, last = [name for name, _ in rows if name], list(stages.values())[-1]
        _write_samples(folder, kind, names, labels, last, arguments.count)
        for name, stage in list(stages.items())[:-1]:
            _write_picture(folder / f"samples-{name}.png", kind, names, stage, arguments.count)
        figures = _figures(
            arguments, folder, stages, labels, description, data, judge, model, store, real, device
        )
        if figures:
            write_whole(folder / "figures.json", json.dumps(figures, indent=2) + "\n")
            print(describe(figures))
    written = f"{len(labels)} samples in {folder / 'samples.png'}"
    written += f", as files in {folder / kind.items}" if kind.has_files else ""
    print(f"{written}, their codes in {folder / 'codes.npz'}")
    if judge is not None and data is not None:
        print(
            f"a classifier, right on {judge.accuracy(data.test):.1%} of the real test {kind.items}, takes "
            f"{judge.agreement(last.images, labels):.1%} of the samples for the class asked for"
        )


def _real_codes(given: str | None, layout: RunLayout, description: CodeDescription) -> CodeStore:
    """The codes in the folder ``given``, or those that the prior was trained on. ValueError."""
    store = CodeStore(given or PriorConfig.of_run(layout.config).codes)
    store.check_values()
    if store.description.weights != description.weights:
        raise ValueError(
            f"codes is {store.folder}, of another model than the prior's codes; accepted: codes of "
            f"{description.model}"
        )
    if store.description.shapes != description.shapes:
        raise ValueError(
            f"codes is {store.folder}, whose codes have the shapes {store.description.shapes}; accepted: "
            f"those of the prior, {description.shapes}"
        )
    return store


def _label_counts(store: CodeStore, description: CodeDescription) -> Tensor:
    """How many training codes have each label of the prior's: ``[classes]``. ValueError for other classes."""
    given = store.description.class_names
    if given != description.class_names:
        raise ValueError(
            f"codes is {store.folder}, with the classes {', '.join(given) or 'none'}; accepted with --mix "
            f"training: those of the prior, {', '.join(description.class_names)}"
        )
    return store.train.label_counts(len(description.class_names))


def _write_samples(
    folder: Path, kind: Kind, names: list[str], labels: Tensor, stage: Stage, count: int
) -> None:
    """``samples.png``, a row a class in ``names``, ``codes.npz``, and the samples as files if need be."""
    _write_picture(folder / "samples.png", kind, names, stage, count)
    if kind.has_files:
        write_samples(kind, stage.images, folder, names)
    arrays: dict[str, Any] = {f"level{i}": level.cpu().numpy() for i, level in enumerate(stage.codes)}
    np.savez(folder / "codes.npz", labels=labels.numpy(), **arrays)


def _write_picture(file: Path, kind: Kind, names: list[str], stage: Stage, count: int) -> None:
    pictures, columns = kind.pictures(stage.images), min(count, 2 * kind.columns)
    if names:
        labelled_rows(file, pictures, names, columns)
    else:
        save_image(grid(pictures, columns), file)


def _figures(
    arguments: argparse.Namespace,
    folder: Path,
    stages: dict[str, Stage],
    labels: Tensor,
    description: CodeDescription,
    data: ImageData | None,
    judge: Judge | None,
    model: DiscreteAutoencoder,
    store: CodeStore | None,
    real: Tensor | None,
    device: str,
) -> dict[str, Any]:
    """All that was asked for, of every stage; empty where one line says all, as for plain samples."""
    column = description.settings.get("label_column")
    is_plain = len(stages) == 1 and store is None and arguments.judge_model == "svm"
    if is_plain and len(label_columns(column)) < 2:
        return {}
    names, kind = description.class_names, kind_of_settings(description.settings)
    compared = real if arguments.two_sample else None
    figures = measure_stages(
        stages, labels, names, column, judge=judge, real=compared, device=device, progress=True
    )
    if judge is not None and data is not None and data.test.labels is not None:
        real_images = data.test.batch(range(len(data.test)))
        of_real = judge.by_class(real_images, data.test.labels, names, column)
        figures[f"real test {kind.items}"] = {"judge": of_real}
    if arguments.neighbours and store is not None and real is not None:
        held_out = decoded_codes(model, store, "test")
        # One sample of each class after the other: the picture shows the first ones.
        images = list(stages.values())[-1].images.unflatten(0, (-1, arguments.count)).transpose(0, 1)
        errors = draw_neighbours(folder / "neighbours.png", images.flatten(0, 1), real, held_out, kind)
        figures[f"squared error to the nearest training {kind.item}"] = errors
    return figures
