"""Saving a model as a folder of two files: ``config.json`` and ``model.safetensors``.

The configuration is the class name and the constructor's arguments, so a folder is all that is needed
to build the model again. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from torch import Tensor, nn

from models.files import read_object, write_whole

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
Model = TypeVar("Model", bound="Pretrained")
LATER_KEYS = ("likelihood.calibrated",)  # not in older files; the module that owns one infers it


def constructor_arguments(local_names: Mapping[str, Any], leave_out: str = "") -> dict[str, Any]:
    """The arguments of an ``__init__``, given ``locals()`` as its first statement; tuples become lists.

    leave_out: an argument that is not written as it is, such as ``**settings``.
    """
    arguments = {
        name: value for name, value in local_names.items() if name not in ("self", "__class__", leave_out)
    }
    return cast(dict[str, Any], json.loads(json.dumps(arguments)))


class Pretrained(nn.Module):
    """Base of every model: ``config`` holds the constructor's arguments, the rest is in the weights.

    For example, ``VQVAE(1, hidden=8).save_pretrained("folder")`` writes the class and every argument, and
    ``VQVAE.from_pretrained("folder")`` gives an equal model.
    """

    config: dict[str, Any]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``directory``, which is made if needed.

        Each appears under its name when it is complete. OSError where it cannot be written.
        """
        from safetensors.torch import save

        folder = Path(directory)
        description = {"class": type(self).__name__, "arguments": self.config}
        state = {key: value.detach().cpu().contiguous().clone() for key, value in self.state_dict().items()}
        write_whole(folder / WEIGHTS_FILE, save(state))
        write_whole(folder / CONFIG_FILE, json.dumps(description, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str = "cpu") -> Self:
        """The model that :meth:`save_pretrained` wrote into ``directory``, in eval mode.

        Its class is this one or an imported subclass of it. device: as torch names it. Raises
        FileNotFoundError for a missing file, and ValueError if another class was saved there or if a weight
        is missing, unknown or of another shape; the message names the key and both shapes.
        """
        config, weights = (Path(directory) / name for name in (CONFIG_FILE, WEIGHTS_FILE))
        for file in (config, weights):
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} does not exist; give a folder written by save_pretrained, for example "
                    f"runs/NAME/model"
                )
        model = cls._from_config(config)
        load_weights(model, _read_weights(weights), str(weights))
        return model.to(device).eval()

    @classmethod
    def _from_config(cls, file: Path) -> Self:
        """An untrained model of this class or a subclass from its ``config.json``; ValueError naming it."""
        remedy = "save the model again (save_pretrained)"
        description = read_object(file, remedy)
        name, arguments = description.get("class"), description.get("arguments")
        classes = {kind.__name__: kind for kind in _with_subclasses(cls)}
        if not isinstance(name, str) or name not in classes:
            raise ValueError(f"{file}: class is {name!r}; accepted: {', '.join(sorted(classes))}; {remedy}")
        if not isinstance(arguments, dict):
            raise ValueError(
                f"{file}: arguments is {arguments!r}; accepted: those of {name} by name; {remedy}"
            )
        try:
            return classes[name](**arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{file}: {name} cannot be built from its arguments ({error}); {remedy}"
            ) from error


def _with_subclasses(cls: type[Model]) -> list[type[Model]]:
    """Those of ``cls`` and the subclasses imported so far of which there can be instances."""
    concrete = [] if inspect.isabstract(cls) or cls is Pretrained else [cls]
    return concrete + [kind for subclass in cls.__subclasses__() for kind in _with_subclasses(subclass)]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule has the flag it had, frozen ones included."""
    flags = [(submodule, submodule.training) for module in modules for submodule in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for submodule, training in flags:
            submodule.training = training


def weights_hash(directory: str | Path) -> str:
    """SHA-256 of the weights in a folder written by ``save_pretrained``, in hexadecimal."""
    return hashlib.sha256((Path(directory) / WEIGHTS_FILE).read_bytes()).hexdigest()


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """``model.load_state_dict`` with all keys and shapes checked first, so nothing is half loaded.

    Raises ValueError listing the missing, unknown and mismatching keys with their shapes.
    """
    built = model.state_dict()
    problems = [
        f"{key} is missing; accepted: {tuple(built[key].shape)}"
        for key in built
        if key not in (*state, *LATER_KEYS)
    ]
    problems += [f"{key} of {tuple(state[key].shape)} is unknown" for key in state if key not in built]
    problems += [
        f"{key} is {tuple(state[key].shape)}; accepted: {tuple(built[key].shape)}"
        for key in built
        if key in state and built[key].shape != state[key].shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}: " + "; ".join(sorted(problems)))
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:  # a value that a module refuses, such as an infinite code
        raise ValueError(f"{source} does not fit {type(model).__name__}: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); save the model again"
        ) from error
