"""The classifier that judges samples: what it is trained on, and the data it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_support import load, write_images

from models.data import to_float
from models.evaluation.judge import Judge

pytestmark = pytest.mark.xdist_group("training")


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
