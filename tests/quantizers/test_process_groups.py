"""Codebooks are shared within a process group, and nobody outside it takes part."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from group_training import SETTINGS
from ranks_support import run_ranks
from torch import Tensor, nn

from vq_kernels import FusedVectorQuantizer, set_process_group

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed"),
]
PROGRAM = Path(__file__).with_name("group_training.py")
NAMES = [f"{how}-{name}" for how in ("argument", "function", "copied") for name in SETTINGS]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    return run_ranks(PROGRAM, 3, tmp_path_factory.mktemp("groups"))


@pytest.mark.parametrize("name", NAMES)
def test_two_trainings_in_one_world_do_not_see_each_other(name: str, states: list[Any]) -> None:
    first, second, other = (state[name] for state in states)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert first["0._codebook.embed"].abs().max() < 10
    assert other["0._codebook.embed"].max() > 100
    assert not torch.equal(first["0._codebook.cluster_size"], torch.ones(1, 11))


def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(TypeError, match=r"process_group is \[.*; accepted: None or a group"):
        FusedVectorQuantizer(4, 8, process_group=[0, 1])
    with pytest.raises(TypeError, match=r"process_group is \S+; accepted: None or a group"):
        set_process_group(FusedVectorQuantizer(4, 8), -100)


def test_a_layer_is_pickled_without_its_group() -> None:
    model = set_process_group(nn.Sequential(FusedVectorQuantizer(4, 8)), None)
    assert pickle.loads(pickle.dumps(model))[0]._codebook.group.group is None
