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
from contextvars import ContextVar
from importlib import import_module
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
    ``VQVAE.from_pretrained("folder")`` gives an equal model. A subclass outside this package is found by
    the path from which it was imported, which ``config.json`` then holds, but imported only where that is
    allowed.
    """

    config: dict[str, Any]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``directory``, which is made if needed.

        Each appears under its name when it is complete. OSError where it cannot be written.
        """
        from safetensors.torch import save

        folder = Path(directory)
        state = {key: value.detach().cpu().contiguous().clone() for key, value in self.state_dict().items()}
        write_whole(folder / WEIGHTS_FILE, save(state))
        self.save_description(folder)

    def save_description(self, directory: str | Path) -> None:
        """Write ``config.json`` alone, from which an untrained model can be built."""
        kind = type(self)
        description: dict[str, Any] = {"class": kind.__name__, "arguments": self.config}
        if not _is_ours(kind):
            description = {"class": kind.__qualname__, "module": kind.__module__, "arguments": self.config}
        write_whole(Path(directory) / CONFIG_FILE, json.dumps(description, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, device: str = "cpu", *, allow_import: bool = False
    ) -> Self:
        """The model that :meth:`save_pretrained` wrote into ``directory``, in eval mode.

        Its class is this one or a subclass of it. allow_import: import the module that the folder names,
        which runs its code, if the class has not been imported yet. device: as torch names it. Raises
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
        with importing(allow_import or _may_import.get()):
            model = cls.from_description(directory)
        load_weights(model, _read_weights(weights), str(weights))
        return model.to(device).eval()

    @classmethod
    def from_description(cls, directory: str | Path) -> Self:
        """An untrained model of this class or a subclass from its ``config.json``; ValueError naming it."""
        file = Path(directory) / CONFIG_FILE
        remedy = "save the model again (save_pretrained)"
        description = read_object(file, remedy)
        name, arguments = description.get("class"), description.get("arguments")
        kind = _find_class(cls, name, description.get("module"), file)
        if kind is None:
            known = sorted({kind.__name__ for kind in _with_subclasses(cls) if _is_ours(kind)})
            raise ValueError(f"{file}: class is {name!r}; accepted: {', '.join(known)}; {remedy}")
        if not isinstance(arguments, dict):
            raise ValueError(
                f"{file}: arguments is {arguments!r}; accepted: those of {name} by name; {remedy}"
            )
        try:
            return kind(**arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{file}: {name} cannot be built from its arguments ({error}); {remedy}"
            ) from error


_may_import: ContextVar[bool] = ContextVar("may_import", default=False)


@contextmanager
def importing(allowed: bool) -> Iterator[None]:
    """Inside, modules that a model's folder names may be imported if ``allowed``; their code then runs."""
    token = _may_import.set(allowed)
    try:
        yield
    finally:
        _may_import.reset(token)


def _is_ours(kind: type[Any]) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _find_class(cls: type[Model], name: Any, module: Any, file: Path) -> type[Model] | None:
    """The class ``name`` of ``module``, by default of this package, if it is ``cls`` or a subclass.

    ValueError where it would have to be imported and may not, or cannot be.
    """
    for kind in _with_subclasses(cls):
        if kind.__qualname__ == name and (_is_ours(kind) if module is None else kind.__module__ == module):
            return kind
    if not (isinstance(module, str) and isinstance(name, str)):
        # A subclass that was saved before folders named the module.
        return next((kind for kind in _with_subclasses(cls) if kind.__name__ == name), None)
    if module == "__main__":
        raise ValueError(
            f"{file}: class is {name} of a script, which cannot be imported; define it in a module, "
            f"and save the "
            f"model again"
        )
    if not _may_import.get():
        raise ValueError(
            f"{file}: class is {name} of the module {module}, which is not imported; import it "
            f"first, or allow "
            f"that (allow_import=True, --allow-import), which runs its code"
        )
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{file}: {name} of the module {module} cannot be imported ({error}); put the folder "
            f"that holds it on "
            f"the path (PYTHONPATH)"
        ) from error
    if not (isinstance(found, type) and issubclass(found, cls)):
        raise ValueError(f"{file}: class is {name} of {module}; accepted: a subclass of {cls.__name__}")
    return found


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
    """``model.load_state_dict`` with all keys, shapes and values checked first, so nothing is half loaded.

    Raises ValueError listing the missing, unknown and mismatching keys with their shapes, or naming a weight
    that is not finite. What a model of your own keeps in buffers may be infinite, as masks are.
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
    weights = state if _is_ours(type(model)) else dict(model.named_parameters())
    for key in weights:
        if key in state and state[key].is_floating_point() and not state[key].isfinite().all():
            raise ValueError(
                f"{source} is damaged: its weights hold NaN or infinity, the first in {key}; accepted: "
                f"finite ones, as of an earlier copy or of another training"
            )
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
