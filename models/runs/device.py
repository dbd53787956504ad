"""Which device a command, a study or a training works on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

# The types of GPU that models run on, as torch names them and its modules: the first that is there is taken.
GPU_TYPES = ("cuda",)


def find_gpu() -> str | None:
    """The type of GPU that torch finds here, or None."""
    return next((name for name in GPU_TYPES if getattr(torch, name).is_available()), None)


def has_bfloat16() -> bool:
    """Whether the processor has instructions that multiply bfloat16; False where the system does not say."""
    file = Path("/proc/cpuinfo")
    names = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's
    lines = file.read_text().splitlines() if file.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not names.isdisjoint(flags.partition(":")[2].split())


def check_compiler() -> None:
    """ValueError unless the C++ compiler is there that ``torch.compile`` runs for the CPU."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name.split()[0]) is None:
        raise ValueError(
            f"compile is true, which needs a C++ compiler, and {name} is not installed; accepted: false, or "
            f"true with the path of a compiler in CXX"
        )


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
