"""Property tests: any shape, any strides, any dtype gives what plain indexing gives."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import float64_argmin, is_interpreted, rows_of
from torch import Tensor

import vq_kernels as vq
from vq_kernels.rows import common_rows, is_view_of

SETTINGS = settings(
    max_examples=30,
    deadline=None,
    # too_slow: examples have a second of the clock, which a busy machine takes.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


@st.composite
def strided_tensors(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A tensor of vectors with a permuted, sliced or expanded layout, and its channel dimension."""
    ndim = draw(st.integers(1, 5))
    channel_dim = draw(st.sampled_from([-1, 1])) if ndim > 1 else -1
    shape = [draw(st.integers(0 if draw(st.booleans()) else 1, 5)) for _ in range(ndim)]
    shape[channel_dim] = draw(st.integers(1, 9))
    steps = [draw(st.integers(1, 2)) for _ in range(ndim)]
    order = draw(st.permutations(range(ndim)))
    storage = torch.randn([shape[i] * steps[i] for i in order])
    x = storage.permute([order.index(i) for i in range(ndim)])
    x = x[tuple(slice(None, None, s) for s in steps)]
    if draw(st.booleans()):
        axis = draw(st.integers(0, ndim - 1))
        if axis != channel_dim % ndim and x.shape[axis] > 0:
            x = x.narrow(axis, 0, 1).expand(x.shape)
    return x, channel_dim


@SETTINGS
@given(strided_tensors(), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_vector_quantize_of_any_tensor(
    backend: str, device: torch.device, tensor: tuple[Tensor, int], codebook_size: int, dtype: torch.dtype
) -> None:
    x, channel_dim = tensor
    x = x.to(device, dtype)
    codebook = torch.randn(codebook_size, x.shape[channel_dim], device=device)
    got = vq.vector_quantize(x, codebook, channel_dim=channel_dim, backend=backend)
    want = float64_argmin(rows_of(x, channel_dim), codebook)
    assert torch.equal(got.indices.reshape(-1), want)
    if dtype != torch.bfloat16 or not is_interpreted(backend):  # its interpreter truncates to bfloat16
        assert torch.equal(rows_of(got.quantized, channel_dim), codebook[want].to(dtype))
    assert torch.equal(got.counts, torch.bincount(want, minlength=codebook_size))


@SETTINGS
@given(strided_tensors(), strided_tensors())
def test_common_rows_keep_the_order_of_rows(a: tuple[Tensor, int], b: tuple[Tensor, int]) -> None:
    x, channel_dim = a
    others = [torch.empty_like(x).copy_(x), x.contiguous(), x]
    for rows in common_rows(channel_dim, *others):
        assert rows.ndim == 3
        assert torch.equal(rows.reshape(-1, rows.shape[-1]), rows_of(x, channel_dim))


def test_usual_layouts_are_views() -> None:
    """No copy for channel-last, channel-first and channels-last memory, slices and single rows."""
    base = torch.randn(3, 8, 5, 7)
    views = [
        (base, 1),
        (base.to(memory_format=torch.channels_last), 1),
        (torch.randn(2, 8, 3, 5, 7), 1),
        (torch.randn(2, 8, 9), 1),
        (base.movedim(1, -1), -1),
        (base[:, 2:6], 1),
        (torch.randn(4, 6, 16)[..., :8], -1),
        (torch.randn(4, 6, 8)[:, ::2], -1),
        (torch.randn(4, 6, 8).transpose(0, 1), -1),
        (torch.randn(8), -1),
        (torch.randn(1, 1, 8).expand(5, 6, 8), -1),
    ]
    for x, channel_dim in views:
        (rows,) = common_rows(channel_dim, x)
        assert is_view_of(rows, x), (x.shape, x.stride())
