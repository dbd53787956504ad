"""The classifier that judges samples: what it is trained on, and the data it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_support import load, write_images

from models.data import to_float
from models.evaluation.judge import Judge, parts_of_classes


def test_judge_tells_digits_apart() -> None:
    data = load("digits")
    judge = Judge(data.train)
    assert judge.accuracy(data.test) > 0.95
    assert judge.agreement(to_float(data.test.batch(range(50))), (data.test.labels[:50] + 1) % 10) < 0.1


def test_judge_knows_every_class_of_sorted_images(tmp_path: Path) -> None:
    """Folders are sorted by class: the first rows would be of the first class alone."""
    for name in ("ant", "bee", "cat"):
        write_images(tmp_path / name, 20)
    data = load(tmp_path)
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    judge = Judge(data.train, limit=20)
    assert set(judge.classifier.classes_) == {0, 1, 2}
    assert torch.equal(*(Judge(data.train, limit=20).classes(data.test.batch([0, 1])) for _ in range(2)))


def test_judge_refuses_images_without_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 20)
    with pytest.raises(ValueError, match=r"labels of the judge.s images is None; accepted: images in"):
        Judge(load(tmp_path / "flat").train)
    write_images(tmp_path / "one" / "ant", 20)
    with pytest.raises(ValueError, match="are of one class; accepted: images of two classes"):
        Judge(load(tmp_path / "one").train)


def test_a_convolutional_judge_tells_digits_apart_and_is_the_same_again() -> None:
    data = load("digits")
    images = data.test.batch(range(50))
    judges = [Judge(data.train, model="cnn", steps=150) for _ in range(2)]
    assert judges[0].accuracy(data.test) > 0.85
    assert torch.equal(*(judge.probabilities(images) for judge in judges))
    assert judges[0].probabilities(images).sum(1).allclose(torch.ones(50))
    with pytest.raises(ValueError, match="judge is 'tree'; accepted: 'svm', 'cnn'"):
        Judge(data.train, model="tree")


def test_shares_by_class_are_of_each_column_alone() -> None:
    names, column = ("f+high", "f+low", "m+high", "m+low"), "sex,rank"
    parts = parts_of_classes(names, column)
    assert {name: (of, index.tolist()) for name, (of, index) in parts.items()} == {
        "sex": (["f", "m"], [0, 0, 1, 1]),
        "rank": (["high", "low"], [0, 1, 0, 1]),
    }
    assert parts_of_classes(("a+b", "c"), "label")["class"][0] == ["a+b", "c"]

    class Fixed(Judge):
        def __init__(self) -> None:
            pass

        def probabilities(self, images: torch.Tensor) -> torch.Tensor:
            # Most likely f+low, but m in all; then f+high.
            return torch.tensor([[0.0, 0.4, 0.3, 0.3], [0.9, 0.1, 0.0, 0.0]])

    labels = torch.tensor([3, 1])  # m+low, f+low
    figures = Fixed().by_class(torch.zeros(2, 1, 2, 2).byte(), labels, names, column)
    assert figures == {"sex": {"all": 1.0, "f": 1.0, "m": 1.0}, "rank": {"all": 0.5, "low": 0.5}}
