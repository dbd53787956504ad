"""Settings as dataclass fields with a help text; their values from YAML files and from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from models.files import write_whole

CONFIG_FOLDER = Path(__file__).parent / "configs"


def setting(default: Any, help: str, *, none_is_text: bool = False) -> Any:
    """A dataclass field with a default and the text that ``--help`` shows for it.

    none_is_text: ``none`` on the command line is a value of its own and does not stand for no value.
    """
    return dataclasses.field(default=default, metadata={"help": help, "none_is_text": none_is_text})


def setting_types(kind: type[Any]) -> dict[str, Any]:
    """The names of the settings of the dataclass ``kind``, in order, and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; a bare name is looked up in ``models/configs``.

    Raises ValueError for a file that does not exist or holds no flat mapping.
    """
    import yaml

    file = Path(path)
    if not file.is_file() and (CONFIG_FOLDER / f"{path}.yaml").is_file():
        file = CONFIG_FOLDER / f"{path}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(entry.stem for entry in CONFIG_FOLDER.glob("*.yaml")))
        raise ValueError(f"config is {str(path)!r}, which does not exist; accepted: a YAML file or {names}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no settings; accepted: lines of the form `setting: value`")
    return values


def write_yaml(path: Path, settings: Any) -> None:
    """Write the values of a dataclass of settings, in the order of its fields."""
    import yaml

    values: Mapping[str, Any] = dataclasses.asdict(settings)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    write_whole(path, yaml.safe_dump(plain, sort_keys=False))


def convert_value(value: Any, hint: Any, name: str, source: str) -> Any:
    """A value of YAML or of a flag in the type ``hint`` of the setting ``name``.

    YAML reads 1e-3 as text and gives lists for tuples; flags give text for everything. Raises ValueError,
    naming ``source``, for a value that does not stand for one of the type.
    """
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not Ellipsis]
    if getattr(hint, "__origin__", None) is tuple:
        entries = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(convert_value(entry, kinds[0], name, source) for entry in entries)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is not int:
            return kind(value)
        if float(value) != int(float(value)):
            raise ValueError(f"{value} has a fraction")
        return int(float(value))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: {name} is {value!r}; accepted: {_accepted(kind)}") from error


def format_value(value: Any) -> str:
    """A setting's value as a flag takes it: ``true``, and the entries of a tuple separated by commas."""
    if isinstance(value, tuple):
        return ",".join(map(format_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _accepted(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
