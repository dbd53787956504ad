"""A classifier trained on real images, to say whether samples show the class asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.data import ImageSplit, some_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Judge:
    """A support vector machine with a radial kernel, trained on at most ``limit`` training images.

    It sees what :meth:`models.data.kinds.Kind.features` says: raw pixels of images. Those that it is trained
    on are drawn at random, always the same ones. ValueError unless they have two classes or more.
    """

    def __init__(self, split: ImageSplit, limit: int = 10_000) -> None:
        from sklearn.svm import SVC

        if split.labels is None:
            items = split.kind.items
            raise ValueError(
                f"labels of the judge's {items} is None; accepted: {items} in a folder per class"
            )
        rows = some_rows(len(split), limit)
        labels = split.batch_labels(rows)
        if len(labels.unique()) < 2:
            items = split.kind.items
            raise ValueError(
                f"the judge's {items} are of one class; accepted: {items} of two classes or more"
            )
        self.kind = split.kind
        self.classifier = SVC(C=10).fit(self._features(split.batch(rows)), labels.numpy())

    def accuracy(self, split: ImageSplit) -> float:
        """The share of real images of ``split`` whose label it finds."""
        rows = range(len(split))
        return self.agreement_of_levels(split.batch(rows), split.batch_labels(rows))

    def agreement(self, samples: Tensor, labels: Tensor) -> float:
        """The share of samples ``[N, C, *S]`` in the models' range that it takes for their label."""
        return self.agreement_of_levels(self.kind.to_levels(samples), labels)

    def agreement_of_levels(self, images: Tensor, labels: Tensor) -> float:
        """The share of levels ``[N, C, *S]``, of images uint8, that it takes for the class in ``labels``."""
        return float((self.classes(images) == labels).float().mean())

    def classes(self, images: Tensor) -> Tensor:
        """The labels that it gives levels ``[N, C, *S]``, of images uint8: ``[N]`` int64."""
        return torch.from_numpy(self.classifier.predict(self._features(images)))

    def _features(self, images: Tensor) -> NDArray[np.float32]:
        parts = [self.kind.features(part.cpu()) for part in images.split(256)]
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features
