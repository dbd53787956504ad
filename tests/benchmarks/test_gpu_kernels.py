"""The times of kernels, rehearsed without a GPU: which first pass is compared with which."""

from __future__ import annotations

import torch

from benchmarks.gpu import kernels
from benchmarks.gpu.target import Target
from benchmarks.work import Case


def test_every_search_is_compared_with_tritons_first_pass() -> None:
    assert {(c.d, c.k, c.dtype) for c in kernels.CASES} == {
        (d, k, dtype)
        for d in (64, 128, 256)
        for k in (512, 8192)
        for dtype in (torch.float32, torch.bfloat16)
    }


def test_triton_takes_the_first_pass_inside() -> None:
    from vq_kernels.backends.triton import hopper

    with kernels.without_hopper():
        assert not hopper.works_on(torch.device("cuda"))


def test_nothing_is_recorded_without_a_gpu() -> None:
    assert Target("cpu").choose(kernels.CASES, kernels.TINY) == (Case(64, 32, 16),)
    if not torch.cuda.is_available():
        assert not kernels.kernel_times(lambda: torch.ones(3).sum())
