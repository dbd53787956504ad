"""Which device a command or a study works on."""

from __future__ import annotations

import torch


def find_device(name: str) -> str:
    """The name of a device for torch; ``auto`` is a GPU where there is one. ValueError for one out of use."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # what torch raises for an unknown and a missing one
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device is {name!r}, which cannot be used here ({reason}); accepted: auto, cpu, or cuda on a GPU"
        ) from error
    return name
