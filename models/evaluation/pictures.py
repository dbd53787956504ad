"""Grids of images and curves, written as PNG."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.kinds import to_uint8
from models.evaluation.fonts import show_text_as_it_is

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110  # of figures


def grid(images: Tensor, columns: int, gap: int = 1) -> Tensor:
    """uint8 or model-range images ``[N, C, H, W]`` in rows of ``columns``: uint8 ``[C, H', W']``."""
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    count, channels, height, width = pixels.shape
    rows = math.ceil(count / columns)
    canvas = torch.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255,
                        dtype=torch.uint8)  # fmt: skip
    for index, image in enumerate(pixels.cpu()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def side_by_side(x: Tensor, reconstruction: Tensor, columns: int = 8) -> Tensor:
    """Pairs of original and reconstruction, ``columns`` pairs a row: uint8 ``[C, H', W']``.

    x, reconstruction: images ``[N, C, H, W]``, both uint8 or both of the models' range.
    """
    pairs = torch.stack([x.cpu(), reconstruction.detach().to("cpu", x.dtype)], dim=1).flatten(0, 1)
    return grid(pairs, 2 * columns)


def save_image(image: Tensor, path: Path, smallest: int = 600) -> Path:
    """Write uint8 ``[C, H, W]``, enlarged by a whole factor until its width is at least ``smallest``."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    factor = max(1, math.ceil(smallest / image.shape[2]))
    large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    array = large.squeeze(0).numpy() if image.shape[0] == 1 else large.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)
    return path


def new_figure(panels: int, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` axes, at most three in a row and four in a square, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if panels == 4 else min(panels, 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[panels:]:
        unused.remove()
    return figure, list(axes[:panels])


def save_figure(figure: Figure, path: Path, caption: str = "") -> Path:
    """Write the figure as PNG, with all names in it as they are.

    caption: what the figure was made of (data, split, seed, settings), one line above everything.
    """
    if caption:
        figure.suptitle(
            "\n".join(textwrap.wrap(caption, max(40, int(13 * figure.get_figwidth())))),
            fontsize="small",
            color="0.3",
        )
    show_text_as_it_is(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # one line has said so
        figure.savefig(path, dpi=DPI)
    return path


def legend_below(figure: Figure, lines: Mapping[str, Any], marker_scale: float = 1.0) -> None:
    """A legend of ``lines`` by name below all panels, in as many columns as fit side by side.

    The figure grows by as much, so that the panels keep their size however many names there are.
    """
    labels = list(lines)
    inches = 0.6 + 0.085 * max(map(len, labels))  # of a column: the line or marker and a small font
    columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
    figure.set_figheight(figure.get_figheight() + 0.19 * math.ceil(len(labels) / columns) + 0.1)
    figure.legend(
        list(lines.values()),
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
        markerscale=marker_scale,
    )


SPLITS = ("train", "validation", "test")
SPREAD = ("mean", "lowest", "highest")  # of several seeds


def line_style(label: str, subjects: list[str]) -> dict[str, Any]:
    """How a line is drawn: a colour for what it shows, a style for the split of the data that it is on.

    ``"top level, train"`` and ``"top level, validation"`` differ in style alone, two levels in colour. The
    lowest and the highest of several seeds are dotted lines of the colour of their mean.

    Args:
        label: words, the split among them or not.
        subjects: what earlier labels of the figure showed; a new one is added.
    """
    words = label.replace(",", " ").split()
    subject = " ".join(word for word in words if word not in SPLITS + SPREAD)
    if subject not in subjects:
        subjects.append(subject)
    is_training, is_edge = "train" in words, not {"lowest", "highest"}.isdisjoint(words)
    return {
        "color": f"C{subjects.index(subject) % 10}",
        "linestyle": ":" if is_edge else "--" if is_training else "-",
        "linewidth": 1.0 if is_training or is_edge else 1.6,
    }


def save_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str = "step",
    y_labels: Mapping[str, str] | None = None,
    share_y: bool = False,
    caption: str = "",
    **axis: Any,
) -> Path:
    """One panel for each quantity, one line for each (label: (x, y)); empty panels are left out.

    Panels that all show the same lines get one legend below them, others one each below their axes; none
    covers a line. Colours and styles are those of :func:`line_style`.

    Args:
        panels: by the quantity's name, the lines by label.
        y_labels: unit of each panel.
        share_y: the same range for all.
        caption: as in :func:`save_figure`.
        axis: settings of every panel, such as ``yscale``.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.ticker import MaxNLocator

    filled = {name: lines for name, lines in panels.items() if lines}
    if not filled:
        raise ValueError(f"panels is {dict(panels)!r}; accepted: at least one line to draw in {path}")
    first = list(next(iter(filled.values())))
    shared = all(list(lines) == first for lines in filled.values())
    own_legends = 0 if shared else max(map(len, filled.values()))
    figure, axes = new_figure(len(filled), height=3.0 + 0.17 * own_legends)
    drawn: dict[str, Artist] = {}
    subjects: list[str] = []
    for axes_of_panel, (name, lines) in zip(axes, filled.items(), strict=True):
        for label, (x, y) in lines.items():
            style = line_style(label, subjects) | {"marker": "o" if len(x) < 3 else None}
            (drawn[label],) = axes_of_panel.plot(x, y, label=label, **style)
        axes_of_panel.set(title=name, xlabel=x_label, ylabel=(y_labels or {}).get(name, ""), **axis)
        axes_of_panel.grid(alpha=0.3)
        whole = all(place % 1 == 0 for x, _ in lines.values() for place in x)
        if whole and axes_of_panel.get_xscale() == "linear":  # as of epochs and steps
            axes_of_panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if not shared and [*lines] != [name]:
            axes_of_panel.legend(
                fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2)
            )
    if shared and len(first) > 1:
        legend_below(figure, drawn)
    if share_y:
        limits = [axes_of_panel.get_ylim() for axes_of_panel in axes]
        for axes_of_panel in axes:
            axes_of_panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return save_figure(figure, path, caption)


def labelled_rows(
    path: Path, images: Tensor, names: Sequence[str], columns: int = 16, caption: str = ""
) -> Path:
    """Images of classes, the same number of each and one class after the other, with names on the left.

    A class of more than ``columns`` images goes on in the next row.

    Args:
        images: ``[len(names) * n, C, H, W]``, uint8 or of the models' range.
    """
    of_class = images.unflatten(0, (len(names), -1))  # [classes, n, C, H, W]
    columns = min(columns, of_class.shape[1])
    blocks = [grid(block, columns) for block in of_class]
    gap = torch.full_like(blocks[0][:, :2], 255)
    picture = torch.cat([part for block in blocks for part in (block, gap)][:-1], dim=1)
    height, width = picture.shape[1:]
    shown = max(7.0, width / DPI)  # inches: no image is shown smaller than it is
    beside = max(1.2, 0.2 + 0.085 * max(map(len, names)))
    figure, (axis,) = new_figure(
        1, width=shown + beside, height=max(0.6, shown / width * height) + (0.4 if caption else 0.1)
    )
    axis.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
    name_rows(axis, names, blocks[0].shape[1], gap=2)
    return save_figure(figure, path, caption)


def name_rows(axis: Axes, names: Sequence[str], height: int, gap: int) -> None:
    """Names on the left of a picture of rows, ``height`` pixels each with ``gap`` between; no frame."""
    axis.set_yticks([(height + gap) * number + (height - 1) / 2 for number in range(len(names))], names)
    axis.set_xticks([])
    axis.tick_params(left=False)
    for side in axis.spines.values():
        side.set_visible(False)
