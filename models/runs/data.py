"""The data that a run was made of, as ``data.json`` in its folder says it, and what has changed since."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

from models.data import DataConfig, ImageData
from models.data.kinds import Kind, kind_of_settings
from models.data.splits import SPLITS
from models.files import read_object, write_whole
from models.runs.layout import RunLayout
from models.settings import setting_types

# Which of the settings of data change no image.
_OF_PLACE = ("data", "cache_gb", "cache_dir")


def store_data(layout: RunLayout, data: ImageData) -> None:
    """Write what the splits hold, as digests of them, and the variance of the pixels, unless it is there."""
    if layout.data.is_file():
        return
    splits = {
        name: {"images": len(data.split(name)), "digest": digest} for name, digest in data.digests.items()
    }
    values = {"settings": data.settings, "splits": splits, "variance": data.variance}
    write_whole(layout.data, json.dumps(values, indent=2) + "\n")


def kind_of_run(layout: RunLayout) -> Kind:
    """The kind and form of the data that the run was trained on; images for runs that do not say."""
    settings = _read(layout, "train again (--overwrite)")["settings"] if layout.data.is_file() else {}
    return kind_of_settings(settings)


def data_of_run(layout: RunLayout, data: ImageData, config: DataConfig, stored: DataConfig) -> ImageData:
    """``data`` with the variance that the run has stored for them; says on standard error if they changed.

    config: with which ``data`` were loaded. stored: the run's own. Of other data nothing is said, and runs of
    before there was ``data.json`` have nothing to compare with.
    """
    others = [name for name in setting_types(DataConfig) if name not in _OF_PLACE]
    is_same = all(getattr(config, name) == getattr(stored, name) for name in others)
    if not (is_same and layout.data.is_file()):
        return data
    record = _read(layout, "remove it, or train again (--overwrite)")
    changes = _changes(record, data)
    if not changes and record["settings"] == data.settings:
        return dataclasses.replace(data, known_variance=record["variance"])
    if config.data == stored.data:
        print(
            f"the {data.kind.items} or labels of {data.name} have changed since {layout.folder} was trained: "
            f"{', '.join(changes) or 'their form'}",
            file=sys.stderr,
            flush=True,
        )
    return data


def _read(layout: RunLayout, remedy: str) -> dict[str, Any]:
    """What :func:`store_data` wrote; ValueError naming the file, and ``remedy``, if it is something else."""
    record = read_object(layout.data, remedy)
    splits, variance = record.get("splits"), record.get("variance")
    if not isinstance(record.setdefault("settings", {}), dict):
        wrong = "settings"
    elif not isinstance(splits, dict) or not all(_is_split(splits.get(name)) for name in SPLITS):
        wrong = "splits"
    elif isinstance(variance, bool) or not isinstance(variance, int | float) or not math.isfinite(variance):
        wrong = "variance"
    else:
        try:
            kind_of_settings(record["settings"])
        except ValueError as error:
            raise ValueError(f"{layout.data} is damaged: {error}; {remedy}") from error
        return record
    raise ValueError(f"{layout.data} is damaged: {wrong} is {record.get(wrong)!r}; {remedy}")


def _is_split(value: Any) -> bool:
    return isinstance(value, dict) and {"images", "digest"} <= value.keys()


def _changes(record: dict[str, Any], data: ImageData) -> list[str]:
    """What has changed of which split, in words."""
    changes = []
    for name, digest in data.digests.items():
        stored, images = record["splits"][name], len(data.split(name))
        if stored["images"] != images:
            changes.append(f"{name} had {stored['images']} {data.kind.items} and has {images}")
        elif stored["digest"] != digest:
            changes.append(f"{name} has other ones")
    return changes
