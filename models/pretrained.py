"""Saving a model as a folder of two files: ``config.json`` and ``model.safetensors``.

The configuration is the class name and the constructor's arguments, so a folder is all that is needed
to build the model again. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor, nn

from models.files import read_object
from models.runs.device import find_device

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LATER_KEYS = ("likelihood.calibrated",)  # not in older files; the module that owns one infers it


def constructor_arguments(local_names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an ``__init__``, given ``locals()`` as its first statement; tuples become lists."""
    arguments = {key: value for key, value in local_names.items() if key not in ("self", "__class__")}
    return cast(dict[str, Any], json.loads(json.dumps(arguments)))


class Pretrained(nn.Module):
    """Base of every model: ``config`` holds the constructor's arguments, the rest is in the weights."""

    config: dict[str, Any]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``directory``, which is made if needed.

        OSError where they cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        description = {"class": type(self).__name__, "arguments": self.config}
        state = {key: value.detach().cpu().contiguous().clone() for key, value in self.state_dict().items()}
        try:
            save_file(state, folder / WEIGHTS_FILE)
        except SafetensorError as error:  # a full disk, for example
            raise OSError(f"{folder / WEIGHTS_FILE} cannot be written ({error})") from error
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str = "cpu") -> Self:
        """Build the model saved in ``directory``, in eval mode.

        Raises FileNotFoundError for a missing file and ValueError if another class was saved there or if
        a weight is missing, unknown or of another shape; the message names the key and both shapes.
        """
        model = load_pretrained(directory, device)
        if not isinstance(model, cls):
            raise ValueError(f"{directory} holds a {type(model).__name__}, not a {cls.__name__}")
        return model


def load_pretrained(directory: str | Path, device: str = "cpu") -> Pretrained:
    """Build whichever model :meth:`Pretrained.save_pretrained` wrote into ``directory``, in eval mode.

    device: as torch names it, or ``auto``. FileNotFoundError or ValueError where there is no such model,
    or no such device.
    """
    device = find_device(device)
    folder = Path(directory)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; give a folder written by save_pretrained, "
                f"for example runs/NAME/model"
            )
    model = _build(folder / CONFIG_FILE)
    load_weights(model, _read(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return model.to(device).eval()


def _build(path: Path) -> Pretrained:
    """An untrained model from its ``config.json``; ValueError naming the file."""
    import models

    remedy = "save the model again (save_pretrained)"
    description = read_object(path, remedy)
    name, arguments = description.get("class"), description.get("arguments")
    kinds = [kind for kind in models.__all__ if kind[0].isupper()]
    found = getattr(models, name) if name in kinds else None
    if not (isinstance(found, type) and issubclass(found, Pretrained)):
        raise ValueError(f"{path}: unknown model class {name!r}; {remedy}")
    if not isinstance(arguments, dict):
        raise ValueError(f"{path} gives no object of arguments for {name}, but {arguments!r}; {remedy}")
    try:
        return found(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {name} cannot be built from its arguments ({error}); {remedy}") from error


def weights_hash(directory: str | Path) -> str:
    """SHA-256 of the weights in a folder written by ``save_pretrained``, in hexadecimal."""
    return hashlib.sha256((Path(directory) / WEIGHTS_FILE).read_bytes()).hexdigest()


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """``model.load_state_dict`` with all keys and shapes checked first, so nothing is half loaded.

    Raises ValueError listing the missing, unknown and mismatching keys with their shapes.
    """
    own = model.state_dict()
    problems = [f"missing {key} {tuple(own[key].shape)}" for key in own if key not in (*state, *LATER_KEYS)]
    problems += [f"unknown {key} {tuple(state[key].shape)}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}: " + "; ".join(sorted(problems)))
    model.load_state_dict(dict(state))


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); save the model again"
        ) from error
