"""Figures of samples: taken for their class, told from real codes, and how near they come to real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.codes.sample import decode
from models.data import some_rows, to_float
from models.data.kinds import Kind, kind_of_settings, to_levels
from models.evaluation.pictures import labelled_rows
from models.evaluation.realism import nearest, two_sample

if TYPE_CHECKING:
    from models.autoencoders.discrete import DiscreteAutoencoder
    from models.codes.store import CodeStore
    from models.evaluation.judge import Judge
    from models.evaluation.selection import Stage

Figures = dict[str, Any]  # as JSON has them


def decoded_codes(
    model: DiscreteAutoencoder, store: CodeStore, split: str, limit: int | None = None
) -> Tensor:
    """What the stored codes of a split look like: levels ``[N, C, *S]``, on the CPU.

    limit: of the images, drawn at random, always the same ones. Of augmented copies the first alone are
    taken, the images as they are.
    """
    rows_of = store.split(split)
    copies = int(store.description.settings.get("copies", 1)) if split == "train" else 1
    count = len(rows_of) // copies
    kind, device = kind_of_settings(store.description.settings), next(model.parameters()).device
    rows = some_rows(count, count if limit is None else limit)
    images = [
        kind.to_levels(decode(model, [level.to(device) for level in rows_of.batch(some)]).cpu())
        for some in rows.split(256)
    ]
    return torch.cat(images)


def measure_stages(
    stages: dict[str, Stage],
    labels: Tensor,
    class_names: Sequence[str],
    label_column: str | None,
    *,
    judge: Judge | None = None,
    real: Tensor | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Figures:
    """Of each stage of :func:`models.evaluation.selection.draw_stages` what ``judge`` and ``real`` allow.

    ``judge``: :meth:`models.evaluation.judge.Judge.by_class`. ``two_sample``: the share of samples and of as
    many of ``real``, levels ``[N, C, *S]``, that a classifier tells apart: of few samples it learns little,
    so that a share near 0.5 says nothing. ``two_sample_before_rejection``: the same of all candidates of a
    rejection, which are more. device: of that classifier.
    """
    figures: Figures = {}
    for name, stage in stages.items():
        of_stage = Figures()
        if judge is not None:
            images = judge.kind.to_levels(stage.images)
            of_stage["judge"] = judge.by_class(images, labels, class_names, label_column)
        if real is not None:
            images = to_levels(stage.images, real.dtype)
            of_stage["two_sample"] = two_sample(real, images, device=device, progress=progress).accuracy
        if stage.told_apart is not None:
            of_stage["two_sample_before_rejection"] = stage.told_apart
        figures[name] = of_stage
    return figures


def draw_neighbours(
    path: Path, samples: Tensor, training: Tensor, held_out: Tensor, kind: Kind, columns: int = 12
) -> Figures:
    """A picture of samples above the training images nearest to them, and how near these are.

    samples: in the models' range, ``[N, C, *S]``, all of which are measured and the first ``columns``
    shown. training, held_out: levels ``[N, C, *S]``, decoded from their codes as the samples are: a sample
    that copies a training image is one of error 0. What a held-out image has for its nearest one is the
    measure of what is near. kind: of all of them.
    """
    rows, errors = nearest(kind.to_levels(samples), training)
    _, real_errors = nearest(held_out, training)
    shown = min(columns, len(samples))
    pairs = kind.pictures(torch.cat([samples[:shown], to_float(training[rows[:shown]])]))
    caption = f"Samples and the training {kind.items} nearest to them"
    labelled_rows(path, pairs, ("sample", "nearest"), columns, caption)
    return {
        name: {
            "median": float(values.median()),
            "least": float(values.min()),
            "equal": int((values == 0).sum()),
        }
        for name, values in (("samples", errors), (f"held-out {kind.items}", real_errors))
    }


def describe(figures: Figures) -> str:
    """The figures as lines of a Markdown table, one a figure, for all that have a value."""
    lines = ["| figure | value |", "|---|---|"]
    for name, value in flat_figures(figures):
        lines.append(f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |")
    return "\n".join(lines)


def flat_figures(figures: Figures, before: str = "") -> list[tuple[str, Any]]:
    """Every figure by the names on the way to it: ``("kept, judge, gender, all", 0.9)``."""
    flat: list[tuple[str, Any]] = []
    for name, value in figures.items():
        whole = f"{before}, {name}" if before else name
        flat += flat_figures(value, whole) if isinstance(value, dict) else [(whole, value)]
    return flat
