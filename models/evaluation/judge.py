"""A classifier trained on real images, to say whether samples show the class asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.data import ImageSplit, some_rows, to_uint8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Judge:
    """A support vector machine with a radial kernel on raw pixels of at most ``limit`` training images.

    The images are drawn at random, always the same ones. ValueError unless they have two classes or more.
    """

    def __init__(self, split: ImageSplit, limit: int = 10_000) -> None:
        from sklearn.svm import SVC

        if split.labels is None:
            raise ValueError("labels of the judge's images is None; accepted: images in a folder per class")
        rows = some_rows(len(split), limit)
        labels = split.batch_labels(rows)
        if len(labels.unique()) < 2:
            raise ValueError("the judge's images are of one class; accepted: images of two classes or more")
        self.classifier = SVC(C=10).fit(_pixels(split.batch(rows)), labels.numpy())

    def accuracy(self, split: ImageSplit) -> float:
        """The share of real images of ``split`` whose label it finds."""
        rows = range(len(split))
        return self.agreement_of_pixels(split.batch(rows), split.batch_labels(rows))

    def agreement(self, samples: Tensor, labels: Tensor) -> float:
        """The share of samples ``[N, C, H, W]`` in the models' range that it takes for their label."""
        return self.agreement_of_pixels(to_uint8(samples), labels)

    def agreement_of_pixels(self, images: Tensor, labels: Tensor) -> float:
        """The share of uint8 images ``[N, C, H, W]`` that it takes for the class in ``labels``, ``[N]``."""
        return float((self.classes(images) == labels).float().mean())

    def classes(self, images: Tensor) -> Tensor:
        """The labels that it gives uint8 images ``[N, C, H, W]``: ``[N]`` int64."""
        return torch.from_numpy(self.classifier.predict(_pixels(images)))


def _pixels(images: Tensor) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = images.flatten(1).float().div(255).cpu().numpy()
    return flat
