"""What settings mean to a run that is there already: which it may change, which only say where it lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from models.settings import format_value, read_yaml

# A resumed run may change these. The others decide the model, its data and their order, or come back with
# the checkpoint, as the learning rate does.
RESUMABLE_SETTINGS = (
    *("name", "runs", "epochs", "steps", "patience", "schedule", "warmup", "clip", "precision", "compile"),
    *("devices", "accelerator", "deterministic", "log_every", "checkpoint_every", "progress", "requeue"),
    *("pictures_every", "logger", "minutes"),
    *("cache_gb", "cache_dir"),
)
# What runs had before there was such a setting, where that is not its default.
BEFORE = {"split_by": "number"}
# Settings that nobody writes down all at once, and every version of the ``config.yaml`` of a run has.
SELDOM_SET = ("runs", "accelerator", "deterministic", "progress", "log_every", "checkpoint_every", "warmup")
# These say where and how a run is made, not what comes out of it.
PLACE_SETTINGS = (*("name", "runs", "accelerator", "progress", "logger", "requeue", "cache_gb", "cache_dir"),)


def check_name(name: str) -> None:
    """ValueError unless ``name`` is that of a folder inside the folder of all runs."""
    inside = os.path.normpath(name)
    if not name.strip() or os.path.isabs(inside) or inside.split(os.sep)[0] in (".", ".."):
        raise ValueError(f"name is {name!r}; accepted: the name of a folder inside runs (--name NAME)")


def enclosing_run(path: Path) -> Path | None:
    """The folder of the run that ``path`` is or lies in, if any."""
    place = path.resolve()
    return next((folder for folder in (place, *place.parents) if _is_run(folder)), None)


def enclosed_run(folder: Path) -> Path | None:
    """The first run below ``folder``, as below that of a sweep, if any."""
    return next((file.parent for file in sorted(folder.rglob("config.yaml")) if _is_run(file.parent)), None)


def _is_run(folder: Path) -> bool:
    try:
        return set(SELDOM_SET) <= set(read_yaml(folder / "config.yaml"))
    except (ValueError, OSError):  # none, or of something else
        return False


def made_with_other(folder: Path, name: str, stored: Any, current: Any) -> str:
    """The message that ``folder`` was made with another value of the setting ``name``."""
    return (
        f"{name} is {format_value(current)}, but {folder} was made with {format_value(stored)}; give the "
        f"same again, choose another name (--name), or replace what differs (--overwrite)"
    )
