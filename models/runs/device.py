"""Which device a command, a study or a training works on."""

from __future__ import annotations

import torch

# The types of GPU that models run on, as torch names them and its modules: the first that is there is taken.
GPU_TYPES = ("cuda",)


def find_gpu() -> str | None:
    """The type of GPU that torch finds here, or None."""
    return next((name for name in GPU_TYPES if getattr(torch, name).is_available()), None)


def find_device(name: str) -> str:
    """The name of a device for torch: ``gpu`` is one that it finds, ``auto`` the CPU where there is none.

    ValueError for a device that cannot be used.
    """
    if name in ("auto", "gpu"):
        gpu = find_gpu()
        if gpu is None and name == "gpu":
            raise ValueError("device is 'gpu', but torch finds no GPU here; accepted: auto or cpu")
        return gpu or "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # what torch raises for an unknown and a missing one
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {name!r}, which cannot be used here ({reason}); accepted: auto, cpu, or "
            f"{' or '.join(GPU_TYPES)} on a GPU"
        ) from error
    return name
