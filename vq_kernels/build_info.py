"""What ``setup.py`` recorded when it built this package: ``_build_info.json``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

_FILE = Path(__file__).with_name("_build_info.json")


@functools.cache
def read_build_info() -> dict[str, Any] | None:
    """The record of the build, or None if the package is run from a checkout that was never built."""
    return json.loads(_FILE.read_text()) if _FILE.exists() else None


def why_not_built(part: Literal["native", "cuda"]) -> str | None:
    """None if the native module or its CUDA kernels were built, else the reason in one sentence."""
    info = read_build_info()
    if info is None:
        return "the native module was never built here; `pip install -e .` builds it"
    if info[part]["built"]:
        return None
    what = "the native module was" if part == "native" else "the CUDA kernels were"
    return f"{what} not built: {info[part]['reason']}"
