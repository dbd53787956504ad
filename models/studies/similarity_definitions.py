"""Structural similarity as different programs define it: window, range of pixels, colour.

A published SSIM seldom says which of them it is, and they lie far apart for the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.data import some_rows, to_float

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder
    from models.data import ImageData

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)
K1, K2 = 0.01, 0.03  # of Wang et al. 2004


def windowed(
    x: Tensor, y: Tensor, *, size: int, gaussian: bool, data_range: float = 1.0, shift: float = 0.5
) -> Tensor:
    """SSIM of each image ``[B, C, H, W]`` in -0.5..0.5, the mean over windows inside the image: ``[B]``.

    size: of the window, in pixels. gaussian: a window of deviation 1.5, else a uniform one. data_range: what
    the constants of the definition are a share of. shift: what is added to the pixels; the luminance term is
    meant for values that are not negative.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(
        x.float() + shift, y.float() + shift, gaussian_kernel=gaussian, kernel_size=size,
        data_range=data_range, reduction="none", return_full_image=True,
    )  # fmt: skip
    full: Tensor = values[1]  # [B, C, H, W]
    margin = size // 2
    return full[..., margin:-margin, margin:-margin].flatten(1).mean(1)


def whole_image(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each image ``[B]``, the mean over its channels, with one window that holds all pixels."""
    a, b = x.double().flatten(2) + 0.5, y.double().flatten(2) + 0.5  # [B, C, H * W]
    mean_a, mean_b = a.mean(2), b.mean(2)
    covariance = ((a - mean_a[..., None]) * (b - mean_b[..., None])).mean(2)
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a.square() + mean_b.square() + K1**2)
    structure = (2 * covariance + K2**2) / (a.var(2, correction=0) + b.var(2, correction=0) + K2**2)
    return (luminance * structure).mean(1)


def grey(x: Tensor) -> Tensor:
    """``[B, 1, H, W]`` of images ``[B, C, H, W]`` in -0.5..0.5."""
    weights = torch.tensor(GREY, device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True) if x.shape[1] == 3 else x


def _of_grey(x: Tensor, y: Tensor, definition: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return definition(grey(x), grey(y))


_GAUSSIAN = partial(windowed, size=11, gaussian=True)
_UNIFORM = partial(windowed, size=7, gaussian=False)
DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Gaussian window of 11, range 1 (Wang et al. 2004)": _GAUSSIAN,
    "the same of grey images": partial(_of_grey, definition=_GAUSSIAN),
    "uniform window of 7, range 1 (scikit-image's default window)": _UNIFORM,
    "Gaussian window, range 2 for pixels in 0..1 (scikit-image took it for floats)": partial(
        _GAUSSIAN, data_range=2.0
    ),
    "uniform window of 7, range 2 for pixels in 0..1": partial(_UNIFORM, data_range=2.0),
    "Gaussian window, range 1, pixels in -0.5..0.5 as the networks see them": partial(_GAUSSIAN, shift=0.0),
    "Gaussian window, range 255 for pixels in 0..1": partial(_GAUSSIAN, data_range=255.0),
    "one window, the whole image, range 1": whole_image,
}


@torch.no_grad()
def similarity_by_definition(model: Autoencoder, data: ImageData, limit: int = 1000) -> dict[str, float]:
    """The mean over ``limit`` test images of each of ``DEFINITIONS``, of the model's reconstructions."""
    device = next(model.parameters()).device
    totals = dict.fromkeys(DEFINITIONS, 0.0)
    rows = some_rows(len(data.test), limit)
    for some in rows.split(100):
        x = to_float(data.test.batch(some).to(device))
        reconstruction = model.eval().reconstruct(x).float().clamp(-0.5, 0.5)
        for name, definition in DEFINITIONS.items():
            totals[name] += float(definition(reconstruction, x).double().sum())
    return {name: total / len(rows) for name, total in totals.items()}
