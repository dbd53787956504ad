"""Checks of tensors that are arguments, in the grammar of ``checks.py``: "NAME is VALUE; accepted: ..."."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .checks import check_choice
from .devices import is_host_readable

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def describe(value: object) -> str:
    """What an error says of a value that is no tensor, or of a tensor of a wrong dtype."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def check_tensor(name: str, t: object) -> None:
    """Raise TypeError if ``t`` is no strided tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is {describe(t)}; accepted: a torch.Tensor")
    if t.layout != torch.strided:
        raise TypeError(f"{name} has layout {t.layout}; accepted: torch.strided")
    if t.is_nested:
        raise TypeError(f"{name} is a nested tensor; accepted: one shape for all, with a mask or lens")


def check_dtype(name: str, t: Tensor, accepted: Sequence[torch.dtype]) -> None:
    """Raise TypeError if the dtype is not among ``accepted``."""
    if t.dtype not in accepted:
        names = ", ".join(str(d).removeprefix("torch.") for d in accepted)
        raise TypeError(f"{name} has dtype {t.dtype}; accepted: {names}")


def check_shape(name: str, t: Tensor, accepted: Sequence[int], why: str) -> None:
    """Raise ValueError if the shape is another one; ``why`` says where the accepted one comes from."""
    if t.shape != tuple(accepted):
        raise ValueError(f"{name} has shape {tuple(t.shape)}; accepted: {tuple(accepted)}, {why}")


def check_device(name: str, t: Tensor, device: torch.device, whose: str) -> None:
    """Raise ValueError if the tensor is not on ``device``, which is that of ``whose`` tensor."""
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}; accepted: {whose} device {device}")


def check_beside(
    name: str, t: Tensor, first: Tensor, whose: str, shape: Sequence[int], dtypes: Sequence[torch.dtype]
) -> None:
    """Raise unless ``t`` has this shape, one of the dtypes and the device of ``first``, that of ``whose``."""
    check_tensor(name, t)
    if t.shape != shape or t.device != first.device or t.dtype not in dtypes:
        check_shape(name, t, shape, f"as {whose} asks")
        check_device(name, t, first.device, f"{whose}'s")
        check_dtype(name, t, dtypes)


def check_rows(x: Tensor, channel_dim: int) -> None:
    """Raise unless x is ``[..., D]``, or ``[B, D, ...]`` with ``channel_dim=1``, of a floating dtype."""
    check_tensor("x", x)
    check_dtype("x", x, FLOAT_DTYPES)
    check_choice((-1, 1), channel_dim=channel_dim)
    if x.ndim < (1 if channel_dim == -1 else 2):
        wanted = "[..., D]" if channel_dim == -1 else "[B, D, ...]"
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted with channel_dim={channel_dim}: {wanted}")
    if x.shape[channel_dim] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)} with D = 0; accepted: D of at least 1")


def check_codebook(codebook: Tensor) -> None:
    """Raise unless the codebook is ``[K, D]`` of a floating dtype, neither of them 0."""
    check_tensor("codebook", codebook)
    check_dtype("codebook", codebook, FLOAT_DTYPES)
    if codebook.ndim != 2 or codebook.shape[0] == 0 or codebook.shape[1] == 0:
        raise ValueError(f"codebook has shape {tuple(codebook.shape)}; accepted: [K, D], both at least 1")


def check_search(x: Tensor, codebook: Tensor, channel_dim: int) -> None:
    """Raise unless rows and codes have one D, lie on one device and are of dtypes that go together."""
    check_rows(x, channel_dim)
    check_codebook(codebook)
    if x.shape[channel_dim] != codebook.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} with D = {x.shape[channel_dim]} in dimension {channel_dim}; "
            f"accepted: D = {codebook.shape[1]}, as codebook {tuple(codebook.shape)} has "
            "(channel-first input needs channel_dim=1)"
        )
    if codebook.dtype not in (torch.float32, x.dtype):
        raise TypeError(f"codebook has dtype {codebook.dtype}; accepted: float32 or x's dtype {x.dtype}")
    check_device("codebook", codebook, x.device, "x's")


def check_integer_tensor(name: str, t: Tensor) -> None:
    """Raise TypeError unless ``t`` is a tensor of integers; bool does not count as one."""
    check_tensor(name, t)
    if t.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name} has dtype {t.dtype}; accepted: int64 or a smaller integer dtype")


def check_mask(mask: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Raise unless the mask is bool, of ``shape`` (x's without its channels) and on x's device."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.layout != torch.strided:
        raise TypeError(f"mask is {describe(mask)}; accepted: a bool tensor, True where a row counts")
    check_shape("mask", mask, shape, "x's shape without its channels")
    check_device("mask", mask, device, "x's")


def check_no_overlap(written: dict[str, Tensor], read: dict[str, Tensor]) -> None:
    """Raise ValueError if a contiguous tensor that is written to shares memory with another argument."""
    spans = [(start := t.data_ptr(), start + t.nbytes, name) for name, t in (*written.items(), *read.items())]
    in_order = sorted(spans)
    if all(before[1] <= after[0] for before, after in pairwise(in_order)):
        return  # as nearly always
    for i, (start, end, name) in enumerate(spans[: len(written)]):
        for other_start, other_end, other in spans[i + 1 :]:
            if start < other_end and other_start < end:
                raise ValueError(f"{other} shares memory with {name}; accepted: tensors of their own")


def check_index_range(indices: Tensor, lowest: int, codebook_size: int) -> None:
    """Raise ValueError for an index below ``lowest`` or past the codes; on the CPU alone.

    On other devices the check would make the host wait.
    """
    if not is_host_readable(indices) or indices.numel() == 0:
        return
    low, high = (int(t) for t in torch.aminmax(indices))
    if low < lowest or high >= codebook_size:
        bad = low if low < lowest else high
        raise ValueError(
            f"indices holds {bad}; accepted: {lowest} to {codebook_size - 1} (codebook_size - 1)"
        )
