"""Two gloo processes: bit-equal codebooks, equal to one process on the joined batch to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_scenarios import RESUMED, SCENARIOS, build, train
from ranks_support import run_ranks
from torch import Tensor

from vq_kernels.quantizers import FusedVectorQuantizer

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed"),
]

PROGRAM = Path(__file__).with_name("distributed_scenarios.py")

Outcome = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    return run_ranks(PROGRAM, 2, tmp_path_factory.mktemp("ranks"), "2")


@pytest.mark.parametrize("name", [*SCENARIOS, "ddp"])
def test_codebooks_are_bit_equal_on_all_ranks(name: str, ranks: list[Outcome]) -> None:
    first, second = ranks[0][name], ranks[1][name]
    assert first.keys() == second.keys()
    for key, value in first.items():
        if key == "last_counts" and SCENARIOS[name][0].get("manual_ema_update"):
            continue  # those of the last forward, each rank's own
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_equal_one_process_on_the_joined_batches(name: str, ranks: list[Outcome]) -> None:
    layer = build(name, seed=0)
    layer.sync_codebook = None
    expected = train(name, layer, None)
    for key, value in expected.items():
        if key == "last_counts" and SCENARIOS[name][0].get("manual_ema_update"):
            continue
        torch.testing.assert_close(ranks[0][name][key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", RESUMED)
def test_codes_that_rank_0_alone_has_loaded_are_those_of_all(name: str, ranks: list[Outcome]) -> None:
    for rank in ranks:
        codes = rank["resumed"]
        torch.testing.assert_close(codes[name], codes[f"{name} saved"], rtol=1e-3, atol=1e-3)


def test_divided_codes_keep_what_forward_writes(ranks: list[Outcome]) -> None:
    """k-means and revival reach the parts that fully_shard keeps, and so does an assignment."""
    for rank in ranks:
        for key, value in rank["learnable"].items():
            assert torch.equal(rank["fully_shard"][key], value), key
        codes = rank["fully_shard_assigned"]["_codebook.embed"][0]
        assert torch.equal(codes, torch.arange(codes.numel(), dtype=torch.float32).view_as(codes))


def test_codebooks_stay_apart_without_synchronisation(ranks: list[Outcome]) -> None:
    assert not torch.equal(ranks[0]["apart"]["_codebook.embed"], ranks[1]["apart"]["_codebook.embed"])


def test_forced_synchronisation_without_a_process_group_says_so() -> None:
    layer = FusedVectorQuantizer(4, 8, sync_codebook=True)
    before = layer.codebook.clone()
    with pytest.raises(RuntimeError, match=r"sync_codebook is True.*init_process_group"):
        layer(torch.randn(3, 4))
    assert torch.equal(layer.codebook, before)
    layer.eval()(torch.randn(3, 4))


def test_waiting_statistics_are_each_ranks_own_under_ddp(ranks: list[Outcome]) -> None:
    for rank in ranks:
        assert rank["ddp_accumulated"]["last_counts"].sum() == 12 + 30 + 5 + 1 + 0 + 7
        assert torch.equal(
            rank["ddp_accumulated"]["_codebook.embed"], ranks[0]["ddp_accumulated"]["_codebook.embed"]
        )
