"""Figures that more than one study draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.data import ImageData, some_rows, to_float
from models.evaluation.pictures import grid, legend_below, name_rows, new_figure, save_figure
from models.runs.layout import RunLayout

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder
    from models.autoencoders.discrete import DiscreteAutoencoder

# Of a VQ-VAE with the `mse` likelihood.
LOSS_UNITS = {
    "loss": "squared error / variance\n+ weighted commitment",
    "reconstruction": "squared error / variance",
    "commitment": "squared distance",
    "perplexity": "codes",
}


def reconstructions_over_epochs(
    path: Path, runs: Mapping[str, RunLayout], epochs: Sequence[int], caption: str = ""
) -> Path:
    """The pictures that training saved after ``epochs``: a column a run, epochs downwards.

    Where none was saved of one, that of the nearest epoch stands for it, and its title says so.

    In each picture originals and their reconstructions alternate.
    """
    from PIL import Image

    pictures = {label: layout.epoch_pictures for label, layout in runs.items()}
    chosen = {
        label: list(dict.fromkeys(min(saved, key=lambda one: abs(one - epoch)) for epoch in epochs))
        for label, saved in pictures.items()
    }
    rows = max(map(len, chosen.values()))
    first = next(iter(next(iter(pictures.values())).values()))
    with Image.open(first) as image:
        height = image.height * 3 // 8  # three rows of the eight that training saves
        panel = 5 * height / image.width + 0.35
    figure, _ = new_figure(1)
    figure.clear()
    figure.set_size_inches(5 * len(pictures), panel * rows + 0.3)
    order = "In each row original, reconstruction, original, reconstruction, ..."
    axes = figure.subplots(rows, len(pictures), squeeze=False)
    for column, (label, saved) in enumerate(pictures.items()):
        for row, epoch in enumerate(chosen[label]):
            with Image.open(saved[epoch]) as image:
                strip = image.crop((0, 0, image.width, height))
                axes[row][column].imshow(np.asarray(strip), cmap="gray")
            axes[row][column].set_title(f"{label}, epoch {epoch}", fontsize="small")
            axes[row][column].set_axis_off()
    return save_figure(figure, path, f"{order} {caption}")


@torch.no_grad()
def code_vectors(
    model: DiscreteAutoencoder, data: ImageData, split: str, limit: int = 2000
) -> tuple[Tensor, Tensor]:
    """The quantized vectors of every level of ``limit`` random images, flattened, and the labels."""
    part = data.split(split)
    device = next(model.parameters()).device
    rows = some_rows(len(part), limit)
    vectors = []
    for some in rows.split(100):
        maps = model.look_up(model.encode(to_float(part.batch(some).to(device))))
        vectors.append(torch.cat([level.flatten(1) for level in maps], dim=1).cpu())
    return torch.cat(vectors), part.batch_labels(rows)


def image_vectors(data: ImageData, split: str, limit: int = 2000) -> Tensor:
    """The same images themselves, ``[N, F]``, at 32 pixels a side at most."""
    part = data.split(split)
    images = to_float(part.batch(some_rows(len(part), limit)))
    height, width = images.shape[-2:]
    return F.adaptive_avg_pool2d(images, (min(32, height), min(32, width))).flatten(1)


def tsne(features: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Points ``[N, 2]`` for each set of features ``[N, F]``, by its name."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = {}
    for title, vectors in features.items():
        if len(np.unique(vectors.numpy(), axis=0)) < 4:  # as of collapsed codes, which t-SNE does not survive
            points[title] = np.pad(vectors.numpy(), ((0, 0), (0, 2)))[:, :2]
            continue
        reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors.numpy())
        perplexity = max(1, min(30, (len(vectors) - 1) // 3))
        points[title] = TSNE(perplexity=perplexity, random_state=0).fit_transform(reduced)
    return points


def tsne_by_label(
    path: Path,
    points: Mapping[str, NDArray[np.float32]],
    labels: Tensor,
    names: Sequence[str],
    caption: str = "",
) -> Path:
    """A panel for each set of points ``[N, 2]`` of :func:`tsne`, coloured by label, and one legend."""
    shown = names or ("all",)
    colours = distinct_colours(len(shown))
    figure, axes = new_figure(len(points), width=4.6, height=4.4)
    markers: dict[str, Any] = {}
    for axis, (title, placed) in zip(axes, points.items(), strict=True):
        for number, (name, colour) in enumerate(zip(shown, colours, strict=True)):
            of_class = labels.numpy() == number if names else np.ones(len(labels), dtype=bool)
            markers[name] = axis.scatter(placed[of_class, 0], placed[of_class, 1], s=8, color=colour)
        axis.set(title=f"t-SNE of {title}", xticks=[], yticks=[])
    if names:
        legend_below(figure, markers, marker_scale=2)
    return save_figure(figure, path, caption)


def distinct_colours(count: int) -> list[tuple[float, ...]]:
    """``count`` colours (RGBA), none twice: those of a palette for up to 20, else samples of a rainbow."""
    import matplotlib

    name = "tab10" if count <= 10 else "tab20" if count <= 20 else "turbo"
    palette = matplotlib.colormaps[name]
    places = np.linspace(0, 1, count) if name == "turbo" else np.arange(count)
    return [tuple(palette(place)) for place in places.tolist()]


def sample_panels(
    path: Path, panels: Mapping[str, tuple[Tensor, Sequence[str]]], columns: int, caption: str
) -> Path:
    """Samples under several settings, a titled panel each: one row a class with its name on the left.

    Args:
        panels: by title, images ``[N, C, H, W]``, ``columns`` of each class and one class after the other,
            and the names of the classes; none where no class was asked for.
    """
    pictures = [grid(images, columns) for images, _ in panels.values()]
    shape = max(picture.shape[1] / picture.shape[2] for picture in pictures)  # few classes make few rows
    figure, axes = new_figure(len(panels), width=4.6, height=0.5 + 4.1 * shape)
    for axis, picture, (title, (images, names)) in zip(axes, pictures, panels.items(), strict=True):
        axis.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        name_rows(axis, names, images.shape[-2], gap=1)
        axis.set_title(title)
    return save_figure(figure, path, caption)


def stacked_bars(
    path: Path, parts: Mapping[str, Mapping[str, float]], ylabel: str, caption: str = ""
) -> Path:
    """One bar for each name, stacked from its named parts, with the total above it."""
    figure, (axis,) = new_figure(1, width=1.5 + 1.3 * len(parts), height=4)
    kinds = list(dict.fromkeys(kind for values in parts.values() for kind in values))
    bottom, bars = np.zeros(len(parts)), {}
    for kind in kinds:
        heights = np.array([values.get(kind, 0.0) for values in parts.values()])
        bars[kind] = axis.bar(list(parts), heights, bottom=bottom)
        bottom += heights
    for position, total in enumerate(bottom):
        axis.text(position, total, f"{total:.2f}", ha="center", va="bottom")
    axis.set(ylabel=ylabel)
    axis.margins(y=0.12)  # the totals stand inside the frame
    axis.tick_params(axis="x", labelrotation=20)
    legend_below(figure, bars)
    return save_figure(figure, path, caption)


def compare_reconstructions(
    path: Path, data: ImageData, models: Mapping[str, Autoencoder], count: int = 12, caption: str = ""
) -> Path:
    """A row of ``count`` held-out originals, or of all there are, then a row for each model."""
    count = min(count, len(data.test))
    figure, _ = new_figure(1)
    figure.clear()
    x = to_float(data.test.batch(some_rows(len(data.test), count)))
    rows = {"original": x}
    for label, model in models.items():
        device = next(model.parameters()).device
        rows[label] = model.eval().reconstruct(x.to(device)).detach().cpu()
    figure.set_size_inches(count, 1.2 * len(rows) + (0.4 if caption else 0))
    axes = figure.subplots(len(rows), count, squeeze=False)
    for row, (label, images) in enumerate(rows.items()):
        for column, image in enumerate(data.kind.pictures(images).permute(0, 2, 3, 1)):
            axes[row][column].imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            axes[row][column].set_axis_off()
        axes[row][0].set_title(label, loc="left", fontsize="small")
    return save_figure(figure, path, caption)
