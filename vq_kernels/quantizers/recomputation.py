"""Activation checkpointing: a forward pass that the backward pass runs again must repeat the first run.

By then the codebook has learnt from the batch. So the first run leaves the codes that it searched with the
region that may be run again, and the second takes them from there, learns nothing and counts nothing.

A region is known by an object that both runs see and that lives as long as the graph: the frame of
``torch.utils.checkpoint`` behind the hooks for saved tensors (``use_reentrant=False``), or the context of an
autograd Function on the stack, without gradients the first time and in its backward pass the second
(``use_reentrant=True``, and the checkpoint functions of DeepSpeed, Megatron and FairScale, which work alike).
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..clustering.draw import skip_draws


class FirstRun(NamedTuple):
    """What a second run needs of the first: the codes that were searched and how often rows were drawn."""

    embed: Tensor  # [H, K, D], a copy
    draws: int


class _Region(NamedTuple):
    key: object
    attempt: object  # tells one run of the region again from another; None while it runs for the first time


class FirstRuns:
    """The first runs of one codebook in the regions that are alive, in the order of the calls.

    A copy or an unpickled one starts empty: it is no part of the graphs of the original.
    """

    def __init__(self) -> None:
        self._runs: weakref.WeakKeyDictionary[object, list[FirstRun]] = weakref.WeakKeyDictionary()
        self._repeated: weakref.WeakKeyDictionary[object, tuple[object, int]] = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, object]) -> FirstRuns:
        return FirstRuns()

    def __reduce__(self) -> tuple[type[FirstRuns], tuple[()]]:
        return FirstRuns, ()

    def note(self, embed: Tensor, draws: int) -> None:
        """Remember a first run wherever it may be run again; elsewhere nothing is kept."""
        regions = _enclosing_regions()
        if regions:
            run = FirstRun(embed.detach().clone(), draws)
            for region in regions:
                self._runs.setdefault(region.key, []).append(run)

    def find(self) -> FirstRun | None:
        """The first run that the present one repeats; None where it is not known."""
        regions = _enclosing_regions()
        again = [region for region in regions if region.attempt is not None]
        run = next((run for run in map(self._next, again) if run is not None), None)
        if not again:
            # A checkpoint within a checkpoint, whose hooks hide the outer one's: a single run is that one.
            alive = {id(run): run for runs in self._runs.values() for run in runs}
            run = alive.popitem()[1] if len(alive) == 1 else None
        if run is not None:
            for region in regions:
                if region.attempt is None:  # within a region that is run again, one that itself may be
                    self._runs.setdefault(region.key, []).append(run)
        return run

    def _next(self, region: _Region) -> FirstRun | None:
        runs = self._runs.get(region.key, ())
        attempt, position = self._repeated.get(region.key, (None, 0))
        position = position if attempt == region.attempt else 0
        self._repeated[region.key] = (region.attempt, position + 1)
        return runs[position] if position < len(runs) else None


def is_recomputation() -> bool:
    """Whether this call is made by a backward pass, or by one who looks at what a checkpoint saved.

    A compiled program has no such calls: what it computes again it has seen as a whole.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._current_graph_task_id() != -1:
        return True
    frame = _checkpoint_frame()
    return frame is not None and frame.attempt is not None


def repeat_draws(run: FirstRun) -> None:
    """Move the random numbers on as the first run did: dropout after the layer must find them there."""
    for _ in range(run.draws):
        skip_draws(run.embed.shape[1], run.embed.device)


def _enclosing_regions() -> list[_Region]:
    frame = _checkpoint_frame()
    regions = [] if frame is None else [frame]
    task = torch._C._current_graph_task_id()
    if task != -1 or not torch.is_grad_enabled():
        for name, ctx in _contexts_on_the_stack():
            regions.append(_Region(ctx, task if name == "backward" else None))
    return regions


def _checkpoint_frame() -> _Region | None:
    """The innermost region of ``checkpoint(..., use_reentrant=False)``, if no other hooks hide it."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None:
        return None
    from torch.utils.checkpoint import _CheckpointFrame

    pack = inspect.unwrap(hooks[0])
    for cell in getattr(pack, "__closure__", None) or ():
        value = cell.cell_contents
        if isinstance(value, _CheckpointFrame):
            return _Region(value, None)
        if isinstance(value, weakref.ref) and isinstance(value(), _CheckpointFrame):
            return _Region(value(), pack)
    return None


def _contexts_on_the_stack() -> Iterator[tuple[str, FunctionCtx]]:
    """The autograd Functions whose ``forward`` or ``backward`` is running, inmost first, by name."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame, code = caller, caller.f_code
        if code.co_name in ("forward", "backward") and code.co_varnames[:1] == ("ctx",):
            ctx = frame.f_locals["ctx"]
            if isinstance(ctx, FunctionCtx):
                yield code.co_name, ctx
