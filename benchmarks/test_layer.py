"""The whole layer against vector-quantize-pytorch, from one state; results are compared before timing."""

from __future__ import annotations

from typing import Any

import pytest

from . import layers
from .compare import LAYER_PEER
from .pytest_timing import time_call
from .work import Case, make_inputs

PARAMETERS = [
    pytest.param(Case(16384, 64, 512), id="N=16384-D=64-K=512"),
    pytest.param(Case(65536, 64, 512), id="N=65536-D=64-K=512", marks=pytest.mark.large),
    pytest.param(Case(65536, 64, 8192), id="N=65536-D=64-K=8192", marks=pytest.mark.large),
]
TITLES = {"forward": "layer forward", "step": "layer forward+backward+EMA"}


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("work", TITLES)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("contender", ["vq_kernels", LAYER_PEER])
def test_layer(benchmark: Any, case: Case, work: str, compiled: bool, contender: str, device: str) -> None:
    reason = layers.peer_reason()
    if reason is not None:
        pytest.skip(reason)
    train = work == "step"
    x = make_inputs(case, device)[0][None]
    ours, theirs = layers.our_layer(case, device), layers.their_layer(case, device)
    benchmark.extra_info["differing_rows"] = layers.check_layers(ours, theirs, x, train=train)
    layer = ours if contender == "vq_kernels" else theirs
    if compiled:
        layer.compile(dynamic=False)
    make = layers.training_step if train else layers.forward_only
    benchmark.group = f"{TITLES[work]} {case.shape}"
    time_call(benchmark, make(layer, x.clone().requires_grad_(train)), device)
