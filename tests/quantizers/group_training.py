"""Two trainings in one world of three processes, of ranks {0, 1} and {2}; the program of each process.

``python group_training.py RANK FOLDER`` writes the states of its layers to ``FOLDER/RANK.pt``.
"""

from __future__ import annotations

import copy
import datetime
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vq_kernels import FusedVectorQuantizer, set_process_group

GROUPS = ((0, 1), (2,))
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kmeans_revival": {"kmeans_init": True, "threshold_ema_dead_code": 1.2},
    "manual": {"manual_ema_update": True},
}


def rows(rank: int, step: int) -> torch.Tensor:
    """N(0, 1) in the first group, far away in the other."""
    x = torch.randn(30 + 5 * rank, 4, generator=torch.Generator().manual_seed(10 * step + rank))
    return x if rank in GROUPS[0] else x + 1000


def main(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=3,
        timeout=datetime.timedelta(seconds=600),
    )
    groups = [dist.new_group(ranks) for ranks in GROUPS]
    own = groups[0 if rank in GROUPS[0] else 1]
    states = {}
    for how in ("argument", "function", "copied"):
        for name, settings in SETTINGS.items():
            torch.manual_seed(rank)  # rank 0 of each group is to be followed
            if how == "argument":
                model = nn.Sequential(FusedVectorQuantizer(4, 11, process_group=own, **settings))
            else:
                model = set_process_group(nn.Sequential(FusedVectorQuantizer(4, 11, **settings)), own)
            if how == "copied":
                model = copy.deepcopy(model)
            # The second group takes one step more: nobody waits for it.
            for step in range(3 if rank in GROUPS[0] else 4):
                model(rows(rank, step))
                model[0].update_codebooks()
            states[f"{how}-{name}"] = model.state_dict()
    torch.save(states, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
