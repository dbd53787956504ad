"""Sounds and volumes that a program has already, as arrays and as data sets of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds_support import RATE, ball, tone

from models.data import DataConfig, DataError
from models.data.given import as_image_data
from models.data.kinds import Sounds, Volumes

SOUNDS = np.stack([(tone(200 + 40 * number, 64) * 32767).astype(np.int16) for number in range(20)])
VOLUMES = np.stack([ball((4, 6, 8), number / 20) for number in range(20)])
LABELS = np.arange(20) % 2


def test_sounds_of_every_form_are_the_same_data() -> None:
    config = DataConfig(kind="audio", rate=RATE)
    forms = [
        (SOUNDS, LABELS),
        (torch.from_numpy(SOUNDS[:, None]), LABELS),
        torch.utils.data.TensorDataset(torch.from_numpy(SOUNDS), torch.from_numpy(LABELS)),
    ]
    loaded = [as_image_data(form, config) for form in forms]
    assert loaded[0].kind == Sounds(64, 1, RATE)
    assert loaded[0].train.batch([0]).shape == (1, 1, 64)
    assert len({data.digest() for data in loaded}) == 1
    assert {tuple(row) for row in loaded[0].test.batch(range(len(loaded[0].test)))[:, 0].tolist()} <= {
        tuple(row) for row in SOUNDS.tolist()
    }
    with pytest.raises(DataError, match="rate is None; accepted for sounds given as arrays"):
        as_image_data(SOUNDS, DataConfig(kind="audio"))
    with pytest.raises(DataError, match=r"sound 0 is float64 of shape \(64,\); accepted: int16 \[T\]"):
        as_image_data(SOUNDS / 1.0, config)


def test_volumes_given_as_arrays() -> None:
    data = as_image_data(VOLUMES, DataConfig(kind="volume"))
    assert data.kind == Volumes((4, 6, 8))
    assert data.train.batch([0, 1]).shape == (2, 1, 4, 6, 8)
    assert data.class_names == ()
    with pytest.raises(DataError, match=r"volume 0 is uint8 of shape \(6, 8\); accepted: uint8 \[D, H, W\]"):
        as_image_data(VOLUMES[:, 0], DataConfig(kind="volume"))
