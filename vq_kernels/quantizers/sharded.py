"""Codes that ``torch.distributed.fsdp.fully_shard`` has divided among the ranks.

Between forward passes such a parameter is a DTensor, each rank holding a part; within one it is a whole
copy that is thrown away afterwards. What k-means, revival or an assignment writes must reach the part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(t: object) -> bool:
    """Whether ``t`` is a DTensor, asked without importing torch.distributed where nobody has."""
    return isinstance(t, Tensor) and hasattr(t, "device_mesh") and hasattr(t, "placements")


@torch.no_grad()
def write_part(sharded: Any, whole: Tensor) -> None:
    """Copy this rank's part of ``whole``, which is the same on every rank, into a DTensor of its shape.

    No rank sends anything: each cuts its part out of what it has.
    """
    from torch.distributed.tensor import DTensor, Replicate

    mesh = sharded.device_mesh
    same = DTensor.from_local(
        whole.detach().to(mesh.device_type, sharded.dtype), mesh, [Replicate()] * mesh.ndim, run_check=False
    )
    part = same.redistribute(placements=sharded.placements).to_local()
    sharded.detach().to_local().copy_(part)
