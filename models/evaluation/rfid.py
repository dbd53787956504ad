"""rFID: the Frechet distance between images and their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data import to_uint8
from models.data.kinds import Kind


class RFID:
    """Frechet distance between images and reconstructions in the features of a TorchScript network.

    The network takes uint8 ``[B, 3, H, W]`` and returns ``[B, F]``, like the exported Inception-v3 that
    published values use. It is not part of this project, so without its file there is no value.

    weights: the network's file, or None. kind: of the data, images of a size on which it is tried at once.
    count: number of images. ValueError unless there are two or more, for a network that does not fit, and for
    data that are no images.
    """

    def __init__(self, weights: str | None, kind: Kind, count: int, device: str) -> None:
        self.metric: Any = None
        if weights is None:
            return
        if not kind.has_rfid:
            raise ValueError(
                f"fid_weights is {weights!r}; accepted for {kind.items}: none, rFID is of images"
            )
        if count < 2:
            raise ValueError(
                f"the number of images is {count}; accepted for rFID: 2 or more (leave out --fid-weights)"
            )
        network = _load(weights, device)
        features = _Features(network, _feature_count(network, weights, kind.size, device))
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.metric = FrechetInceptionDistance(feature=features).to(device)

    def update(self, images: Tensor, reconstruction: Tensor) -> None:
        """Add images, uint8 ``[B, C, H, W]``, and their reconstructions in the models' range."""
        if self.metric is None:
            return
        for pictures, real in ((images, True), (to_uint8(reconstruction), False)):
            self.metric.update(pictures.expand(-1, 3, -1, -1), real=real)

    def compute(self) -> float | str:
        """The distance, or in words why there is none."""
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
        raise ValueError(f"fid_weights is {weights!r}, which does not exist; accepted: a TorchScript network")
    try:
        return torch.jit.load(weights, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(
            f"fid_weights is {weights!r}; accepted: a TorchScript file, as torch.jit.save writes it"
        ) from error


@torch.no_grad()
def _feature_count(network: torch.nn.Module, weights: str, size: Sequence[int], device: str) -> int:
    """Number of features of an image; ValueError unless the network gives one vector for each."""
    accepted = "accepted: a network that takes uint8 [B, 3, H, W] and returns features [B, F]"
    try:
        features = network(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    except Exception as error:  # a script can raise anything
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ValueError(
            f"fid_weights is {weights!r}, which fails on uint8 [1, 3, {size[0]}, {size[1]}] "
            f"({reason.strip()}); {accepted}"
        ) from error
    if not isinstance(features, Tensor):
        returned = type(features).__name__
    elif features.ndim != 2 or len(features) != 1 or not features.is_floating_point():
        returned = f"{features.dtype} {list(features.shape)}"
    else:
        return features.shape[1]
    raise ValueError(f"fid_weights is {weights!r}, which returns {returned} for one image; {accepted}")
