"""What the ranks of a training job tell each other, so that their codebooks stay bit for bit the same.

The process group is looked up when a batch arrives, never at construction: a layer that was built
before ``init_process_group`` synchronises all the same. Every rank takes part in every collective,
whatever its batch holds, so that uneven and empty batches cannot hang.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroup:
    """The ranks that share codebooks: a group of ``torch.distributed``, or None for the whole world.

    A module that holds one can be copied, and then shares the group, and pickled, which forgets it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if group is not None and not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"process_group is {group!r}; accepted: None or a group that this rank belongs to"
            )
        self.group = group

    def __deepcopy__(self, memo: dict[int, object]) -> ProcessGroup:
        return self

    def __reduce__(self) -> tuple[type[ProcessGroup], tuple[()]]:
        return ProcessGroup, ()

    @property
    def rank(self) -> int:
        """This process's number within the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """How many processes the group has; -1 if this one is not among them."""
        return dist.get_world_size(self.group)


WORLD = ProcessGroup()


def is_synchronized(sync_codebook: bool | None, group: ProcessGroup = WORLD) -> bool:
    """Whether statistics are shared: as asked for, or with None if more than one process takes part."""
    if sync_codebook is False:
        return False
    running = dist.is_available() and dist.is_initialized()
    if sync_codebook and not running:
        raise RuntimeError(
            "sync_codebook is True but torch.distributed has no process group; call init_process_group "
            "before training, or accept the default sync_codebook=None"
        )
    if running and group.size < 0:
        raise RuntimeError(
            f"process_group is one without this rank, {dist.get_rank()}; accepted: a group of this rank"
        )
    return running and group.size > 1


def reduce_statistics(counts: Tensor, sums: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Sum counts ``[H, K]`` and sums ``[H, K, D]`` over the ranks, as float32, in one collective.

    Counts above 2^24 per code are rounded, as they are when they enter the float32 cluster size.
    """
    flat = torch.cat((counts.flatten().float(), sums.flatten().float()))
    dist.all_reduce(flat, group=group.group)
    total_counts, total_sums = flat.split((counts.numel(), sums.numel()))
    return total_counts.view(counts.shape), total_sums.view(sums.shape)


def share_randomness(rows: Tensor, number: int, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Row counts ``[world]`` int64 of all ranks, and ``number`` float64 uniforms: the same on every rank."""
    rank, world = group.rank, group.size
    flat = rows.new_zeros(world + number, dtype=torch.float64)
    flat[rank] = rows
    uniforms = torch.rand(
        number, dtype=torch.float64, device=rows.device
    )  # drawn by all: generators stay in step
    if rank == 0:
        flat[world:] = uniforms
    dist.all_reduce(flat, group=group.group)
    return flat[:world].long(), flat[world:]


def sum_over_ranks(t: Tensor, group: ProcessGroup) -> Tensor:
    """In place; adding zeros of the other ranks leaves a rank's values exact."""
    dist.all_reduce(t, group=group.group)
    return t


def broadcast_from_first(tensors: list[Tensor], group: ProcessGroup) -> None:
    """Overwrite the float32 tensors with those of the group's rank 0, in one collective."""
    flat = torch.cat([t.detach().flatten().float() for t in tensors])
    first = 0 if group.group is None else dist.get_global_rank(group.group, 0)
    dist.broadcast(flat, src=first, group=group.group)
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view(t.shape))
