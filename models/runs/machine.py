"""What a run was made with, kept in its folder: commit, times, processor, versions."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from models.files import read_object, write_whole
from models.runs.device import find_gpu


def describe_machine() -> dict[str, Any]:
    """Commit of the checkout, processor and GPU, threads and versions; None for what is not known."""
    gpu = find_gpu()
    return {
        "commit": _commit(),
        "processor": _processor(),
        "gpu": getattr(torch, gpu).get_device_name() if gpu else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def read_attempts(file: Path) -> list[dict[str, Any]]:
    """What :func:`recorded` has written, oldest first; none where there is no file. ValueError naming it."""
    attempts = read_object(file, "remove it").get("attempts", []) if file.is_file() else []
    if not isinstance(attempts, list) or not all(isinstance(attempt, dict) for attempt in attempts):
        raise ValueError(f"{file} is damaged: attempts is {attempts!r}; remove it")
    return attempts


@contextmanager
def recorded(file: Path) -> Iterator[None]:
    """Add what the block ran on, when it began and how long it took, to the attempts in ``file``, as JSON."""
    start = time.monotonic()
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    attempts = read_attempts(file)
    try:
        yield
    finally:
        seconds = round(time.monotonic() - start, 1)
        attempts.append({"began": began, "seconds": seconds} | describe_machine())
        write_whole(file, json.dumps({"attempts": attempts}, indent=2) + "\n")


def _processor() -> str | None:
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _commit() -> str | None:
    """Of the checkout; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 and (root / ".git").exists() else None
