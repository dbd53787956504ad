"""Where the parts of a GPU session run: on the CUDA GPU, or in a rehearsal on the CPU of any machine.

In a rehearsal Triton's kernels are interpreted, the CUDA kernels run in the host build that the tests
use (``tests/cuda_host``), and sizes are tiny: it shows that the programs work, not that kernels do.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from vq_kernels.backends import register_backend

from ..machine import ROOT

BACKENDS = ("triton", "cuda")
Size = TypeVar("Size")


@dataclass(frozen=True)
class Target:
    """A device type, ``"cuda"`` or, in a rehearsal, ``"cpu"``."""

    device: str

    @property
    def is_rehearsal(self) -> bool:
        return self.device == "cpu"

    def choose(self, real: Size, tiny: Size) -> Size:
        """``real`` on a GPU, ``tiny`` in a rehearsal."""
        return tiny if self.is_rehearsal else real

    def backend(self, name: str) -> str:
        """The name under which a backend is registered for tensors of this device."""
        return _host_backend() if self.is_rehearsal and name == "cuda" else name

    def synchronize(self) -> None:
        """Wait for the device, so that its errors are raised here."""
        if not self.is_rehearsal:
            torch.cuda.synchronize()

    @property
    def flags(self) -> tuple[str, ...]:
        """What a program of this folder is told so that it runs on the same target."""
        return ("--rehearse",) if self.is_rehearsal else ()


@functools.cache
def _host_backend() -> str:
    sys.path.insert(0, str(ROOT / "tests"))
    backend = importlib.import_module("cuda_host").load_backend()
    register_backend(backend)
    return str(backend.name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--out`` and ``--rehearse``, which every program of a session takes."""
    parser.add_argument("--out", type=Path, help="the folder that results are written to")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, interpreted, with tiny sizes")


def open_target(rehearse: bool, program: str) -> Target | None:
    """The target asked for; None, with the reason on stderr, where a GPU is needed and none is there."""
    if rehearse:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined
        return Target("cpu")
    if not torch.cuda.is_available():
        print(f"{program} needs a CUDA GPU, and torch sees none on this machine.", file=sys.stderr)
        return None
    return Target("cuda")
