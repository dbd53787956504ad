"""Reading the small JSON files that describe models and codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in ``path``; ValueError naming the file, and ``remedy``, if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}; accepted: an object; {remedy}")
    return values
