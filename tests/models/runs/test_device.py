"""Which device is taken, of those that torch finds."""

from __future__ import annotations

import pytest
import torch

from models.runs import device
from models.runs.device import find_device, find_gpu


def test_auto_takes_the_first_type_of_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "GPU_TYPES", ("cuda", "xpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert find_gpu() == "xpu"
    assert [find_device(name) for name in ("auto", "gpu", "cpu")] == ["xpu", "xpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == "cuda"


def test_without_a_gpu_auto_is_the_cpu_and_a_gpu_asked_for_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_gpu() is None
    assert find_device("auto") == "cpu"
    with pytest.raises(ValueError, match="device is 'gpu', but torch finds no GPU here; accepted: auto"):
        find_device("gpu")
