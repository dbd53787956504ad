"""Settings as dataclass fields with a help text; their values from YAML files and from the command line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from models.files import write_whole

CONFIG_FOLDER = Path(__file__).parent / "configs"


def setting(default: Any, help: str, *, none_is_text: bool = False, **only_with: tuple[str, ...]) -> Any:
    """A dataclass field with a default and the text that ``--help`` shows for it.

    none_is_text: ``none`` on the command line is a value of its own and does not stand for no value.
    only_with: by the name of another setting, the values of it with which this one means something.
    """
    metadata = {"help": help, "none_is_text": none_is_text, "only_with": only_with}
    return dataclasses.field(default=default, metadata=metadata)


def setting_types(kind: type[Any]) -> dict[str, Any]:
    """The names of the settings of the dataclass ``kind``, in order, and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; a bare name is looked up in ``models/configs``.

    Raises ValueError for a file that does not exist or holds no flat mapping.
    """
    file = Path(path)
    if not file.is_file() and (CONFIG_FOLDER / f"{path}.yaml").is_file():
        file = CONFIG_FOLDER / f"{path}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(entry.stem for entry in CONFIG_FOLDER.glob("*.yaml")))
        raise ValueError(f"config is {str(path)!r}, which does not exist; accepted: a YAML file or {names}")
    return dict(_parse(file.read_bytes(), str(file)))


@lru_cache(maxsize=8)
def _parse(content: bytes, file: str) -> dict[str, Any]:
    """The settings in the text of a file; ValueError naming it, in one line."""
    import yaml

    form = "accepted: lines of the form `setting: value`"
    try:
        loader = yaml.SafeLoader(content.decode("utf-8-sig"))
        node = loader.get_single_node()
        values = None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error}); save it again in UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply; {form}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no settings; {form}")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise ValueError(f"{file}: {shown} is no name of a setting; {form}")
    names = [key.value for key, _ in node.value]
    for name, value in values.items():
        if names.count(name) > 1:
            raise ValueError(f"{file}: {name} is given {names.count(name)} times; accepted: once")
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(entry, list | dict | set) for entry in entries):
            raise ValueError(f"{file}: {name} is nested; accepted: a value, or a list of values")
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
        # In YAML `true` is no number and no name, and nothing stands for no text.
        if value is None or isinstance(value, list) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{name} is of another type")
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is not int:
            return kind(value)
        if isinstance(value, int) or str(value).strip().lstrip("+-").isdecimal():
            return int(value)  # a float has no more than 53 bits of it
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


def closest(name: str, known: Iterable[str]) -> str:
    """Which of the ``known`` names may have been meant by ``name``, or where to find them all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    loose = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return f"accepted: {', '.join(loose)}{' or ' if loose else ''}another one that --help lists"


def check_applies(settings: Any, names: Iterable[str], source: str) -> None:
    """ValueError for the first of the settings ``names`` that means nothing with what others are set to.

    settings: a dataclass of :func:`setting` fields. source: what gives ``names``, for the message, which also
    lists the settings that there are in its place.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name in names:
        for other, accepted in fields[name].metadata["only_with"].items():
            chosen = getattr(settings, other)
            if chosen in accepted or chosen not in _choices(settings, other):
                continue  # an unknown value is refused elsewhere
            own = [field.name for field in fields.values() if _applies(settings, field)]
            raise ValueError(
                f"{source}: {name} means nothing with {other} {chosen}, only with {' or '.join(accepted)}; "
                f"accepted with {chosen}: {', '.join(own)}"
            )


def choices_of(settings: Any) -> set[str]:
    """The names of the settings that decide which others mean something."""
    return {other for field in dataclasses.fields(settings) for other in field.metadata["only_with"]}


def _choices(settings: Any, other: str) -> set[str]:
    """The values of the setting ``other`` that the other settings speak of."""
    return {
        value
        for field in dataclasses.fields(settings)
        for value in field.metadata["only_with"].get(other, ())
    }


def _applies(settings: Any, field: dataclasses.Field[Any]) -> bool:
    """Whether ``field`` means something, and does so only because of what another setting is."""
    only_with = field.metadata["only_with"]
    return bool(only_with) and all(getattr(settings, name) in values for name, values in only_with.items())


def _accepted(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
