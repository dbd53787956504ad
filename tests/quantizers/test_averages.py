"""Averages of models (``torch.optim.swa_utils``), and the meta device, take whatever a layer holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
)

from vq_kernels.quantizers import FusedVectorQuantizer

AVERAGES: dict[str, dict[str, Callable[..., Any]]] = {
    "default": {},
    "ema": {"avg_fn": get_ema_avg_fn(0.75)},
    "ema_multi": {"multi_avg_fn": get_ema_multi_avg_fn(0.75)},
    "swa": {"avg_fn": get_swa_avg_fn()},
    "swa_multi": {"multi_avg_fn": get_swa_multi_avg_fn()},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {},
    "manual": {"manual_ema_update": True, "threshold_ema_dead_code": 1.0},
    "kmeans": {"kmeans_init": True},
    "learnable": {"learnable_codebook": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("use_buffers", [False, True], ids=["copied", "averaged"])
@pytest.mark.parametrize("average", AVERAGES)
def test_a_model_is_averaged(average: str, use_buffers: bool, options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), FusedVectorQuantizer(8, 16, **options))
    averaged = AveragedModel(model, use_buffers=use_buffers, **AVERAGES[average])
    layer, codes = model[1], []
    for _ in range(2):
        model(torch.randn(40, 8))
        layer.update_codebooks()
        if options.get("learnable_codebook"):
            layer.codebook = torch.randn(16, 8)
        averaged.update_parameters(model)
        codes.append(layer.codebook.detach().clone())
    inner = averaged.module[1]
    assert not inner._codebook.needs_init
    weight = 0.25 if "ema" in average else 0.5
    is_averaged = use_buffers or options.get("learnable_codebook")
    expected = codes[0].lerp(codes[1], weight) if is_averaged else codes[1]
    torch.testing.assert_close(inner.codebook.detach(), expected)
    # What is averaged goes on as a layer that has its codes.
    averaged(torch.randn(40, 8))
    torch.testing.assert_close(inner._codebook.initted, torch.tensor(1.0))
    torch.optim.swa_utils.update_bn([torch.randn(40, 8)], averaged)


@pytest.mark.parametrize("average", AVERAGES)
def test_codes_that_were_averaged_in_are_not_initialised_again(average: str) -> None:
    """The average was taken of a layer without codes first."""
    model = nn.Sequential(FusedVectorQuantizer(8, 16, kmeans_init=True))
    averaged = AveragedModel(model, use_buffers=True, **AVERAGES[average])
    averaged.update_parameters(model)
    model(torch.randn(400, 8))
    averaged.update_parameters(model)
    inner, fresh = averaged.module[0], FusedVectorQuantizer(8, 16, kmeans_init=True, ema_update=False)
    assert not inner._codebook.needs_init
    fresh.load_state_dict(inner.state_dict())
    fresh(torch.randn(400, 8))
    assert torch.equal(fresh.codebook, inner.codebook)


def test_averages_that_write_into_state_dicts_take_it_in() -> None:
    """As those of timm do, and others that leave out what is no floating-point number."""
    model, mean = (FusedVectorQuantizer(8, 16, kmeans_init=True) for _ in range(2))
    model(torch.randn(400, 8))
    for target, value in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
        assert target.is_floating_point()
        target.mul_(0.9).add_(value, alpha=0.1)
    assert not mean._codebook.needs_init


@pytest.mark.parametrize("how", ["to_empty", "to_empty_from_cpu", "assign"])
def test_waiting_statistics_start_at_nothing_wherever_a_layer_is_made(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"manual_ema_update": True, "threshold_ema_dead_code": 1.0}
    source = FusedVectorQuantizer(8, 16, **options)
    if how == "to_empty_from_cpu":
        layer = FusedVectorQuantizer(8, 16, **options)
    else:
        with torch.device("meta"):
            layer = FusedVectorQuantizer(8, 16, **options)
    if how != "assign":
        monkeypatch.setattr(torch, "empty_like", lambda t, **to: torch.full_like(t, 99, **to))
        layer.to_empty(device="cpu")
        monkeypatch.undo()
    state = {key: value.clone() for key, value in source.state_dict().items()}
    layer.load_state_dict(state, assign=how == "assign")
    assert torch.equal(layer.last_counts, torch.zeros(1, 16, dtype=torch.int64))
    x = torch.randn(40, 8)
    for each in (source, layer):
        torch.manual_seed(4)
        each(x)
        each.update_ema()
    assert torch.equal(layer.last_counts, source.last_counts)
    for key, value in source.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value), key
