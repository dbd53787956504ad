"""Calls captured in a CUDA graph, with a stand-in for CUDA."""

from __future__ import annotations

import contextlib
import gc
import weakref
from unittest import mock

import pytest
import torch

from benchmarks.launches import captured


def test_a_captured_call_keeps_the_tensors_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph knows addresses alone: what lies there must not be freed while it can be replayed."""
    stand_in = mock.MagicMock()
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: contextlib.nullcontext())
    x = torch.ones(3)
    seen = weakref.ref(x)
    replay = captured(lambda x=x: x.sum())  # type: ignore[misc]
    del x
    gc.collect()
    assert seen() is not None
    replay()
    assert stand_in().replay.called
