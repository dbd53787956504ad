"""Processes that train together, each with a result of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def run_ranks(program: Path, count: int, folder: Path, *arguments: str, timeout: float = 800) -> list[Any]:
    """What each of ``count`` processes of ``program RANK ARGUMENTS FOLDER`` saves as ``FOLDER/RANK.pt``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), *arguments, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [p.communicate(timeout=timeout)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    for rank, p in enumerate(processes):
        assert p.returncode == 0, f"rank {rank}: {said[rank]}"
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]
