"""``vq_kernels::first_run``, and the refusal to run twice what changes a codebook, in compiled graphs too.

Activation checkpointing runs a forward pass again within the backward pass. An eager layer then repeats its
first run (``quantizers/recomputation.py``); what is refused here does not know that first run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import operator


def refuse_second_run() -> None:
    """RuntimeError in a backward pass: the codebook is not what it was when the same batch came first."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a codebook that changes with its batches is read again in a backward pass (activation "
            "checkpointing around a compiled layer or a plain function, or a compiler's own recomputation); "
            "accepted: an eager FusedVectorQuantizer (torch.compiler.disable), which recalls its first run, "
            "or manual_ema_update=True in a graph that holds the checkpoint"
        )


def _fake(counts: Tensor) -> Tensor:
    return torch.empty_like(counts)


@operator("first_run(Tensor counts) -> Tensor", _fake)
def first_run(counts: Tensor) -> Tensor:
    """A copy of the counts, of any shape: where a compiled graph counts, it asks whether it did before.

    Raises:
        RuntimeError: the graph runs in a backward pass, and would count the same batch twice.
    """
    refuse_second_run()
    return counts.clone()
