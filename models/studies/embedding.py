"""The embedding space of a VQ-VAE with two-dimensional codes (van den Oord et al. 2017, figure 1, right).

The gradient of the decoder's input is copied to the encoder's output. Following it, an output may cross into
the cell of another code: so the encoder learns to choose other codes, though the choice has no gradient.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.autoencoders.vqvae import VQVAE
from models.evaluation.pictures import new_figure, save_figure
from vq_kernels import nearest_code

STEP = 0.5  # length of the median step, in median distances from a code to its neighbour
ARROWS = 60
PIXELS = 400  # of the picture of the cells, on either side


class GradientSteps(NamedTuple):
    """Encoder outputs ``[N, 2]`` and their codes ``[N]``; where a step takes them, and the codes there."""

    outputs: Tensor
    codes: Tensor
    moved: Tensor
    codes_then: Tensor


def gradient_steps(model: VQVAE, x: Tensor) -> GradientSteps:
    """A step of gradient descent, of one rate, on the encoder's outputs for images ``[B, C, H, W]``.

    The rate makes the median step ``STEP`` distances from a code to its neighbour long. The gradient is that
    of the reconstruction loss alone.
    """
    codebook = _codebook(model)
    z = model.to_embedding(model.encoder(x))  # [B, 2, H', W']
    quantized, codes, _ = model.quantizer(z, freeze_codebook=True)
    loss = model.likelihood.loss(model.decoder(quantized), x)
    (gradient,) = torch.autograd.grad(loss, z)
    outputs, downhill = (part.detach().movedim(1, -1).flatten(0, -2) for part in (z, -gradient))
    distances = torch.cdist(codebook, codebook).fill_diagonal_(torch.inf).amin(1)
    step = STEP * distances.median() / downhill.norm(dim=1).median().clamp_min(1e-30)
    moved = outputs + step * downhill
    return GradientSteps(outputs, codes.flatten(), moved, nearest_code(moved, codebook))


def embedding_space(path: Path, model: VQVAE, steps: GradientSteps, caption: str = "") -> Path:
    """Codes, their cells, encoder outputs, and arrows for ``ARROWS`` of the steps.

    ValueError unless the codes have two dimensions.
    """
    codebook = _codebook(model).cpu()
    if codebook.shape[1] != 2:
        raise ValueError(f"embedding_dim is {codebook.shape[1]}; accepted: 2, that a picture has")
    outputs, moved = steps.outputs.cpu(), steps.moved.cpu()
    crosses = (steps.codes_then != steps.codes).cpu()
    low, high = outputs.quantile(0.005, dim=0), outputs.quantile(0.995, dim=0)
    margin = 0.15 * (high - low)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    across, upwards = torch.linspace(left, right, PIXELS), torch.linspace(bottom, top, PIXELS)
    points = torch.cartesian_prod(upwards, across).flip(1)  # x, y of each pixel, row by row
    cells = nearest_code(points, codebook).view(PIXELS, PIXELS).numpy()
    figure, (axis,) = new_figure(1, width=7.5, height=6.5)
    shade = np.random.default_rng(0).permutation(len(codebook))[cells]
    axis.imshow(shade, extent=(left, right, bottom, top), origin="lower", aspect="auto", cmap="Pastel1",
                interpolation="nearest")  # fmt: skip
    axis.contour(across, upwards, _edges(cells), levels=[0.5], colors="0.6", linewidths=0.6)
    axis.scatter(outputs[:, 0], outputs[:, 1], s=3, color="0.35", label="encoder outputs")
    axis.scatter(codebook[:, 0], codebook[:, 1], s=70, marker="*", color="black", label="codes", zorder=4)
    for leaves, colour, label in (
        (True, "tab:red", "gradient step into another cell"),
        (False, "tab:blue", "gradient step within the cell"),
    ):
        rows = torch.nonzero(crosses == leaves).flatten()[: ARROWS // 2]
        start, way = outputs[rows].numpy(), (moved - outputs)[rows].numpy()
        axis.quiver(*start.T, *way.T, angles="xy", scale_units="xy", scale=1, width=0.003, color=colour,
                    label=label, zorder=3)  # fmt: skip
    axis.set(xlim=(left, right), ylim=(bottom, top), xlabel="first dimension", ylabel="second dimension")
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return save_figure(figure, path, caption)


def _codebook(model: VQVAE) -> Tensor:
    """All codes, ``[K, D]``."""
    numbers = torch.arange(model.codebook_size, device=next(model.parameters()).device)
    return model.look_up([numbers.view(-1, 1, 1)])[0].detach().flatten(1)


def _edges(cells: np.ndarray) -> np.ndarray:
    """1 where a pixel lies beside one of another cell, else 0: ``[H, W]``."""
    edges = np.zeros(cells.shape)
    edges[:, 1:] += cells[:, 1:] != cells[:, :-1]
    edges[1:] += cells[1:] != cells[:-1]
    return edges.clip(0, 1)
