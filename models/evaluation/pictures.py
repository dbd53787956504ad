"""Grids of images and curves, written as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.data.images import to_uint8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    """Pairs of original and reconstruction, ``columns`` pairs a row: uint8 ``[C, H', W']``."""
    pairs = torch.stack([x.cpu(), reconstruction.detach().float().cpu()], dim=1).flatten(0, 1)
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
    """A figure with ``panels`` axes, at most three in a row, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, rows = min(panels, 3), math.ceil(panels / 3)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[panels:]:
        unused.remove()
    return figure, list(axes[:panels])


def legend_below(figure: Figure, axis: Axes, marker_scale: float = 1.0) -> None:
    """The legend of ``axis`` below all panels, in as many columns as fit side by side."""
    handles, labels = axis.get_legend_handles_labels()
    inches = 0.6 + 0.085 * max(map(len, labels))  # of a column: the line or marker and a small font
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(labels), int(figure.get_figwidth() / inches))),
        fontsize="small",
        markerscale=marker_scale,
    )


def save_curves(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str = "step",
    y_labels: Mapping[str, str] | None = None,
    share_y: bool = False,
    **axis: Any,
) -> Path:
    """One panel for each quantity, one line for each (label: (x, y)); empty panels are left out.

    Panels that all show the same lines get one legend below them, others one each. y_labels: unit of each
    panel. share_y: the same range for all. axis: settings of every panel, such as ``yscale``. Raises
    ValueError if there is nothing to draw.
    """
    filled = {name: lines for name, lines in panels.items() if lines}
    if not filled:
        raise ValueError(f"nothing to draw in {path}")
    first = list(next(iter(filled.values())))
    shared = all(list(lines) == first for lines in filled.values())
    figure, axes = new_figure(len(filled))
    for axes_of_panel, (name, lines) in zip(axes, filled.items(), strict=True):
        for label, (x, y) in lines.items():
            axes_of_panel.plot(x, y, label=label, marker="o" if len(x) < 3 else None)
        axes_of_panel.set(title=name, xlabel=x_label, ylabel=(y_labels or {}).get(name, ""), **axis)
        axes_of_panel.grid(alpha=0.3)
        if len(lines) > 1 and not shared:
            axes_of_panel.legend(fontsize="small")
    if shared and len(first) > 1:
        legend_below(figure, axes[0])
    if share_y:
        limits = [axes_of_panel.get_ylim() for axes_of_panel in axes]
        for axes_of_panel in axes:
            axes_of_panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
