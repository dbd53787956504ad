"""A classifier trained on real images, to say whether samples show the class asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.data import ImageSplit, some_rows
from models.data.columns import JOINED, label_columns
from models.evaluation.classifier import Examples, class_probabilities, train_classifier
from vq_kernels.checks import check_choice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODELS = ("svm", "cnn")


class Judge:
    """A classifier of at most ``limit`` training images, drawn at random, always the same ones.

    model: ``svm``, a support vector machine with a radial kernel on what
    :meth:`models.data.kinds.Kind.features` says, raw pixels of images, or ``cnn``, a convolutional network
    (:mod:`models.evaluation.classifier`), which photographs and paintings need, on ``device``. ValueError
    unless the images have two classes or more, and for a ``cnn`` of data that are no images.
    """

    def __init__(
        self,
        split: ImageSplit,
        limit: int = 10_000,
        model: str = "svm",
        *,
        seed: int = 0,
        steps: int = 1500,
        device: str = "cpu",
        progress: bool = False,
    ) -> None:
        check_choice(MODELS, judge=model)
        if model == "cnn" and not split.kind.augments:
            raise ValueError(f"judge is 'cnn'; accepted for {split.kind.items}: 'svm'")
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
        self.kind, self.num_classes = split.kind, int(split.labels.max()) + 1
        self.network, self.classifier = None, None
        if model == "cnn":
            images = split.batch(rows)
            examples = Examples(lambda chosen: images[chosen], labels)
            self.network = train_classifier(
                examples, self.num_classes, steps=steps, seed=seed, device=device, progress=progress
            )
        else:
            from sklearn.svm import SVC

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
        if self.network is not None:
            return self.probabilities(images).argmax(1)
        assert self.classifier is not None
        return torch.from_numpy(self.classifier.predict(self._features(images)))

    def probabilities(self, images: Tensor) -> Tensor:
        """Of each class: ``[N, classes]``; a support vector machine gives 1 to the class that it names."""
        if self.network is not None:
            return class_probabilities(self.network, images)
        return F.one_hot(self.classes(images), self.num_classes).float()

    def by_class(
        self, images: Tensor, labels: Tensor, class_names: Sequence[str], label_column: str | None
    ) -> dict[str, dict[str, float]]:
        """The share of levels ``[N, C, *S]`` that it takes for their class: of all, and by class.

        Of classes that combine several columns (:func:`models.data.columns.joined_labels`) by column, a part
        of the class alone being asked for: ``{"gender": {"all": 0.92, "male": 0.93, ...}, "status":
        {...}}``; otherwise ``{"class": {...}}``. Classes without an image are left out.
        """
        probabilities = self.probabilities(images)
        figures: dict[str, dict[str, float]] = {}
        for column, (names, part_of) in parts_of_classes(class_names, label_column).items():
            of_part = torch.zeros(len(images), len(names)).index_add_(
                1, part_of[: probabilities.shape[1]], probabilities
            )
            wanted = part_of[labels]
            is_right = (of_part.argmax(1) == wanted).float()
            figures[column] = {"all": float(is_right.mean())}
            for number, name in enumerate(names):
                if bool((wanted == number).any()):
                    figures[column][name] = float(is_right[wanted == number].mean())
        return figures

    def _features(self, images: Tensor) -> NDArray[np.float32]:
        parts = [self.kind.features(part.cpu()) for part in images.split(256)]
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features


def parts_of_classes(
    class_names: Sequence[str], label_column: str | None
) -> dict[str, tuple[list[str], Tensor]]:
    """By column of labels its classes, and which of these each class is part of, ``[classes]`` int64.

    One entry ``class`` where the classes are those of one column.
    """
    columns = label_columns(label_column)
    parts = [name.split(JOINED) for name in class_names]
    if len(columns) < 2 or any(len(names) != len(columns) for names in parts):
        return {"class": (list(class_names), torch.arange(len(class_names)))}
    result = {}
    for place, column in enumerate(columns):
        names = list(dict.fromkeys(part[place] for part in parts))
        result[column] = (names, torch.tensor([names.index(part[place]) for part in parts]))
    return result
