"""rFID: the Frechet distance between images and their reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data import to_uint8


class RFID:
    """Frechet distance between images and reconstructions in the features of a TorchScript network.

    The network takes uint8 ``[B, 3, H, W]`` and returns ``[B, F]``, like the exported Inception-v3 that
    published values use. It is not part of this project, so without its file there is no value.

    weights: the network's file, or None. size: (H, W) of the images, on which it is tried at once.
    count: number of images. ValueError unless there are two or more, and for a network that does not fit.
    """

    def __init__(self, weights: str | None, size: tuple[int, int], count: int, device: str) -> None:
        self.metric: Any = None
        if weights is None:
            return
        if count < 2:
            raise ValueError(f"rFID needs at least 2 images, got {count}; leave out the feature network")
        network = _load(weights, device)
        features = _Features(network, _tried(network, weights, size, device))
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.metric = FrechetInceptionDistance(feature=features).to(device)

    def update(self, images: Tensor, reconstruction: Tensor) -> None:
        """images uint8 ``[B, C, H, W]``, reconstruction in the models' range."""
        if self.metric is None:
            return
        for pictures, real in ((images, True), (to_uint8(reconstruction), False)):
            self.metric.update(pictures.expand(-1, 3, -1, -1), real=real)

    def compute(self) -> float | str:
        if self.metric is None:
            return "not computed: no feature network was given (--fid-weights)"
        return float(self.metric.compute())


class _Features(torch.nn.Module):
    """A feature network that says how many features it gives, as torchmetrics asks."""

    def __init__(self, network: torch.nn.Module, num_features: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features


def _load(weights: str, device: str) -> torch.nn.Module:
    if not Path(weights).is_file():
        raise ValueError(f"fid weights {weights!r} do not exist; give a TorchScript feature network")
    try:
        return torch.jit.load(weights, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"fid weights {weights!r} are no TorchScript file: save one by torch.jit.save"
        ) from error


@torch.no_grad()
def _tried(network: torch.nn.Module, weights: str, size: tuple[int, int], device: str) -> int:
    """Number of features of an image; ValueError unless the network gives one vector for each."""
    wanted = "export one that takes uint8 [B, 3, H, W] and returns features [B, F]"
    try:
        found = network(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    except Exception as error:  # a script can raise anything
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ValueError(
            f"fid weights {weights!r}: the network fails on uint8 [1, 3, {size[0]}, {size[1]}] "
            f"({reason.strip()}); {wanted}"
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1 or not found.is_floating_point():
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"fid weights {weights!r}: the network returns {got} for one image; {wanted}")
    return found.shape[1]
