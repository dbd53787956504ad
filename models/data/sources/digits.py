"""The 1,797 handwritten digits inside scikit-learn: real data that need no download."""

from __future__ import annotations

import functools
import io
from typing import ClassVar

from models.data.settings import DataConfig
from models.data.sources.base import Source, SourceData


class Digits(Source):
    """``digits``: images of 8 x 8 with 17 grey levels, spread over 0..255, and the digit as the label."""

    rank: ClassVar[int] = 0

    def claims(self, data: str) -> bool:
        return data == "digits"

    def open(self, config: DataConfig) -> SourceData:
        import datasets

        images, labels = _digits()
        features = datasets.Features(
            {
                "image": datasets.Image(decode=False),
                "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)]),
            }
        )
        columns = {"image": [{"path": None, "bytes": png} for png in images], "label": list(labels)}
        return SourceData({"train": datasets.Dataset.from_dict(columns, features=features)})


@functools.cache  # of a process that opens them again and again, as a sweep does
def _digits() -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """The images as PNG, and their labels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = []
    for grey in (bunch.images * (255 / 16)).round().astype("uint8"):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, format="PNG")
        images.append(buffer.getvalue())
    return tuple(images), tuple(bunch.target.tolist())
