"""What a study was made with, as its folder says it, so that nothing made with something else is replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.files import read_object, write_whole
from models.runs.config import TrainConfig
from models.runs.layout import RunLayout
from models.runs.rules import made_with_other
from models.settings import read_yaml

STUDY_FILE = "study.json"


def check_study(folder: Path, current: Mapping[str, str], overwrite: bool) -> None:
    """ValueError if ``folder`` holds a run, or a study that was made with something else than ``current``."""
    if RunLayout(folder).config.is_file():
        raise ValueError(f"{folder} holds a run; choose another name (--name)")
    file = folder / STUDY_FILE
    if overwrite or not file.is_file():
        return
    stored = read_object(file, "choose another name (--name), or replace the study (--overwrite)")
    for name in stored | dict(current):
        if stored.get(name) != current.get(name):
            raise ValueError(made_with_other(folder, name, stored.get(name), current.get(name)))


def store_study(folder: Path, current: Mapping[str, str]) -> None:
    """Write what the study in ``folder`` is made with."""
    write_whole(folder / STUDY_FILE, json.dumps(current, indent=2) + "\n")


def rules_of_study(folder: Path) -> dict[str, str]:
    """The settings by whose rules an earlier version made the study in ``folder``; none for a new one."""
    for file in sorted(folder.glob("*/config.yaml")):
        values = read_yaml(file)
        if "data" in values:
            rule = TrainConfig.completed(values)["split_by"]
            return {} if rule == TrainConfig.split_by else {"split_by": rule}
    return {}
