"""Which classes are drawn where one name stands for several of them."""

from __future__ import annotations

import torch

from models.runs.priors import mixed_labels

FREQUENCIES = torch.tensor([120, 43, 1004, 58, 382, 399, 1514, 1939])


def test_classes_of_a_part_come_as_the_training_codes_have_them() -> None:
    labels = mixed_labels([0, 1, 2, 3], 32, FREQUENCIES)
    assert labels.bincount().tolist() == [3, 1, 26, 2], "the largest remainders are rounded up"
    assert mixed_labels([4, 5, 6, 7], 32, FREQUENCIES).bincount(minlength=8).tolist() == [
        *(0, 0, 0, 0, 3, 3, 11, 15)
    ]
    first, second = labels.chunk(2)
    assert 12 <= int((first == 2).sum()) <= 14, "no class stands at one end"
    assert (second == 3).any()


def test_without_frequencies_classes_come_by_turns() -> None:
    assert mixed_labels([1, 2], 5).tolist() == [1, 2, 1, 2, 1]
    assert mixed_labels([1, 2], 3, torch.zeros(8)).tolist() == [1, 2, 1], "of classes without an image"
