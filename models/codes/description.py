"""What a store of codes holds, as ``codes.json`` beside the codes and beside the priors over them says it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from models.data.kinds import kind_of_settings
from models.data.sources import DataError
from models.data.splits import SPLITS
from models.files import read_object, write_whole

DESCRIPTION_FILE = "codes.json"


@dataclass(frozen=True)
class CodeDescription:
    """All that the codes of a store and their order depend on.

    For example, the codes of a two-level model of 256 x 256 images, one codebook of 512 codes each, have the
    shapes ``((32, 32), (64, 64))`` and the codebook sizes ``((512,), (512,))``. With 4 stages of 512 codes at
    every position they are ``((32, 32, 4), (64, 64, 4))`` and ``((512,) * 4, (512,) * 4)``.

    Attributes:
        shapes: of the codes of one image at each level, top first; a last axis of Q codes where a position
            has more than one.
        codebook_sizes: number of values of each of the Q codes of a position, for each level.
        class_names: of the labels beside the codes; empty without labels.
        data: where the images came from.
        model: folder of the model; where it lies changes no code, so it is not compared.
        weights: hash of the model's weights.
        settings: which images the splits hold and in what form, see :class:`models.data.ImageData`.
        sizes: number of images of each split.
        shard_size: number of images in a file.
    """

    shapes: tuple[tuple[int, ...], ...]
    codebook_sizes: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    data: str
    model: str
    weights: str
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    shard_size: int = 16_384

    def vocabulary(self, level: int) -> int:
        """The number of values of every code of ``level``; ValueError where its codes differ in that."""
        sizes = set(self.codebook_sizes[level])
        if len(sizes) > 1:
            raise ValueError(
                f"codebook_sizes of level {level} is {self.codebook_sizes[level]}; accepted for a prior: "
                f"equal sizes"
            )
        return sizes.pop()

    def shards(self, folder: Path, split: str) -> dict[Path, range]:
        """The files of a split in the store at ``folder``, in order, each with its rows."""
        size = self.sizes[split]
        shards = [range(i, min(i + self.shard_size, size)) for i in range(0, size, self.shard_size)]
        return {folder / split / f"{rows.start:09d}-{rows.stop:09d}.arrow": rows for rows in shards}

    def difference(self, other: CodeDescription) -> tuple[str, Any, Any] | None:
        """The first setting in which the two differ, its value in this one and in the other."""
        own, others = self._compared(), other._compared()
        for name in own | others:
            if name == "digest" and not (name in own and name in others):
                continue  # of a store that was written before there was one
            if own.get(name) != others.get(name):
                return name, own.get(name), others.get(name)
        return None

    def save(self, folder: Path) -> None:
        """Write ``codes.json`` into ``folder``, under its name only when it is complete."""
        values = self._values()
        if self.model:  # relative to the store, so that it is found from anywhere and after a move of both
            values["model"] = os.path.relpath(self.model, folder)
        write_whole(folder / DESCRIPTION_FILE, json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> CodeDescription:
        """The description in ``folder``. Raises ValueError, a DataError mostly, if there is none."""
        file = folder / DESCRIPTION_FILE
        if not file.is_file():
            raise DataError(f"{folder} holds no codes; write them with `python -m models encode RUN`")
        remedy = "write them again with `python -m models encode RUN --overwrite`"
        values = read_object(file, remedy)
        sizes = {"codebook_size", "codebook_sizes"} & values.keys()
        if len(sizes) == 2:
            raise DataError(f"{file} has both codebook_size and codebook_sizes; accepted: one; {remedy}")
        for name in (entry.name for entry in fields(cls)):
            if name not in values and not (name == "codebook_sizes" and sizes):
                missing = "codebook_size" if name == "codebook_sizes" else name
                raise DataError(f"{file} does not say the {missing} of its codes; {remedy}")
        for name, value in values.items():
            if name not in _FORMS:
                raise DataError(f"{file} has the unknown entry {name!r}; {remedy}")
            fits, accepted = _FORMS[name]
            if not fits(value):
                raise DataError(f"{file}: {name} is {value!r}; accepted: {accepted}; {remedy}")
        try:
            kind_of_settings(values["settings"])
        except ValueError as error:
            raise DataError(f"{file}: {error}; {remedy}") from error
        if "codebook_size" in values:
            values["codebook_sizes"] = [[values.pop("codebook_size")]] * len(values["shapes"])
        if len(values["codebook_sizes"]) != len(values["shapes"]):
            raise DataError(
                f"{file}: codebook_sizes is of {len(values['codebook_sizes'])} levels; accepted: one entry "
                f"for each of {len(values['shapes'])} shapes; {remedy}"
            )
        for name in ("shapes", "codebook_sizes"):
            values[name] = tuple(tuple(level) for level in values[name])
        if values["model"]:
            values["model"] = os.path.normpath(folder / values["model"])
        values["class_names"] = tuple(values["class_names"])
        return cls(**values)

    def _values(self) -> dict[str, Any]:
        """The entries of ``codes.json``: one ``codebook_size`` where every level has one codebook of it."""
        values = asdict(self)
        sizes = values.pop("codebook_sizes")
        if len(set(sizes)) == 1 and len(sizes[0]) == 1:
            codebook: dict[str, Any] = {"codebook_size": sizes[0][0]}
        else:
            codebook = {"codebook_sizes": sizes}
        return {"shapes": values.pop("shapes")} | codebook | values

    def _compared(self) -> dict[str, Any]:
        """What two descriptions are compared by; what a user changes first."""
        values = self._values()
        images = {f"{name} images": number for name, number in self.sizes.items()}
        others = {key: value for key, value in values.items() if key not in ("model", "settings", "sizes")}
        settings = {name: value for name, value in self.settings.items() if name != "digest"}
        digest = {name: value for name, value in self.settings.items() if name == "digest"}
        return {"data": self.data} | settings | images | others | digest


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_size, value))


def _is_levels(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_sizes, value))


# For each entry of codes.json whether a value fits, and what does.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shapes": (_is_levels, "the size of each level's code map"),
    "codebook_size": (_is_size, "an integer of at least 1"),
    "codebook_sizes": (_is_levels, "for each level the number of values of each code of a position"),
    "class_names": (lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of names"),
    **{name: (lambda v: isinstance(v, str), "text") for name in ("data", "model", "weights")},
    "settings": (lambda v: isinstance(v, dict), "an object"),
    "sizes": (
        lambda v: isinstance(v, dict) and set(v) == set(SPLITS) and all(map(_is_size, v.values())),
        f"the number of images of {', '.join(SPLITS)}",
    ),
    "shard_size": (_is_size, "an integer of at least 1"),
}
