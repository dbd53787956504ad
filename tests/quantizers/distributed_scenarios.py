"""Training runs that two processes and a single one do alike; also the program that each process runs.

``python distributed_scenarios.py RANK WORLD FOLDER`` writes the outcome of every scenario to
``FOLDER/RANK.pt``. The single process sees the ranks' batches joined.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vq_kernels.quantizers import FusedVectorQuantizer

DIM, CODES = 6, 17
UNEVEN = [(40, 23), (31, 0), (0, 0), (0, 9), (25, 25)]  # rows of rank 0 and 1, step by step

# name -> (options, rows per step, whether a mask leaves a third of them out)
SCENARIOS: dict[str, tuple[dict[str, Any], list[tuple[int, int]], bool]] = {
    "plain": ({}, UNEVEN, False),
    "masked": ({}, UNEVEN, True),
    "cosine": ({"use_cosine_sim": True}, UNEVEN, False),
    "separate_heads": ({"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True}, UNEVEN, False),
    "revival": ({"threshold_ema_dead_code": 1.2}, UNEVEN, True),
    "kmeans": ({"kmeans_init": True}, UNEVEN, True),
    "kmeans_deferred": ({"kmeans_init": True}, [(0, 0), (0, 30), (20, 20)], False),
    "kmeans_few_rows": ({"kmeans_init": True, "threshold_ema_dead_code": 0.5}, [(3, 2), (20, 20)], False),
    "manual": ({"manual_ema_update": True}, UNEVEN, False),
    "manual_revival": ({"manual_ema_update": True, "threshold_ema_dead_code": 1.2}, UNEVEN, False),
    "learnable": (
        {"learnable_codebook": True, "kmeans_init": True, "threshold_ema_dead_code": 1.2},
        UNEVEN,
        False,
    ),
    "forced": ({"sync_codebook": True}, UNEVEN, False),
}

RESUMED: dict[str, dict[str, Any]] = {
    "ema": {},
    "static": {"ema_update": False},
    "learnable": {"learnable_codebook": True},
}


def build(name: str, seed: int) -> FusedVectorQuantizer:
    torch.manual_seed(seed)
    return FusedVectorQuantizer(DIM, CODES, **SCENARIOS[name][0])


def train(name: str, layer: FusedVectorQuantizer, rank: int | None) -> dict[str, Tensor]:
    """All steps on this rank's part of each batch, or on the whole batch if rank is None."""
    _, steps, masked = SCENARIOS[name]
    batches = torch.Generator().manual_seed(9)
    torch.manual_seed(100 + (rank or 0))
    for number, (first, second) in enumerate(steps):
        x = torch.randn(first + second, DIM, generator=batches)
        mask = torch.rand(first + second, generator=batches) < 0.67
        part = slice(None) if rank is None else (slice(0, first), slice(first, None))[rank]
        layer(x[part], mask=mask[part] if masked else None)
        if layer._codebook.manual_ema_update and number % 2:
            layer.update_ema()
    return {**whole_state(layer), "last_counts": layer.last_counts.float()}


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state with the parameters put together that ``fully_shard`` has divided."""
    state = module.state_dict()
    return {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in state.items()
    }


def divide(layer: FusedVectorQuantizer) -> FusedVectorQuantizer:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(layer, mesh=mesh)
    return layer


def train_under_ddp(rank: int) -> dict[str, Tensor]:
    torch.manual_seed(50 + rank)
    model = nn.parallel.DistributedDataParallel(
        nn.Sequential(nn.Linear(DIM, DIM), FusedVectorQuantizer(DIM, CODES, threshold_ema_dead_code=1.2))
    )
    for rows in ((12, 30), (5, 1)):
        out = model(torch.randn(rows[rank], DIM))
        (out.quantized.square().mean() + out.loss).backward()
    return model.state_dict()


def accumulate_under_ddp(rank: int) -> dict[str, Tensor]:
    """Every pass synchronises the buffers of the model, which the waiting statistics must not be."""
    torch.manual_seed(50)
    layer = FusedVectorQuantizer(DIM, CODES, manual_ema_update=True)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(DIM, DIM), layer))
    for rows in ((12, 30), (5, 1), (0, 7)):
        model(torch.randn(rows[rank], DIM)).loss.backward()
    layer.update_ema()
    return {"last_counts": layer.last_counts, "_codebook.embed": layer.codebook}


def resume_rank0(rank: int) -> dict[str, Tensor]:
    """Only rank 0 has loaded a state; the others were to start from k-means."""
    codes = {}
    for name in RESUMED:
        torch.manual_seed(50)
        options = {"kmeans_init": True, **RESUMED[name]}
        layer = FusedVectorQuantizer(DIM, CODES, sync_codebook=False, **options)
        layer(torch.randn(80, DIM))
        codes[f"{name} saved"] = layer.codebook.detach().clone()
        resumed = FusedVectorQuantizer(DIM, CODES, decay=1.0, **options)
        if rank == 0:
            resumed.load_state_dict(layer.state_dict())
        resumed(torch.randn(30, DIM))
        codes[name] = resumed.codebook.detach().clone()
    return codes


def main(rank: int, world: int, folder: Path) -> None:
    layers = {name: build(name, seed=rank) for name in SCENARIOS}  # before there is a process group
    apart = FusedVectorQuantizer(DIM, CODES, sync_codebook=False)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=600),
    )
    outcome = {name: train(name, layer, rank) for name, layer in layers.items()}
    outcome["ddp"] = train_under_ddp(rank)
    outcome["resumed"] = resume_rank0(rank)
    outcome["ddp_accumulated"] = accumulate_under_ddp(rank)
    divided = divide(build("learnable", seed=rank))
    trained = train("learnable", divided, rank)
    outcome["fully_shard"] = {key: value.clone() for key, value in trained.items()}
    divided.codebook = torch.arange(CODES * DIM, dtype=torch.float32).view(CODES, DIM)
    outcome["fully_shard_assigned"] = whole_state(divided)
    # What concerns one rank alone must not wait for the other.
    if rank == 0:
        layers["plain"].eval()(torch.randn(5, DIM))
        layers["revival"](torch.randn(5, DIM), freeze_codebook=True)
    apart(torch.randn(20 + rank, DIM))
    outcome["apart"] = apart.state_dict()
    torch.save(outcome, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
