"""Flags made from the fields of a settings class, and what several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from models.data.settings import DataConfig
from models.runs.config import TrainConfig
from models.runs.layout import RunLayout
from models.runs.loop import LoopConfig
from models.runs.open import read_run_config
from models.runs.rules import enclosing_run
from models.runs.start import start_config
from models.settings import format_value, setting_types

Config = TypeVar("Config", bound=LoopConfig)
_NOT_GIVEN = object()


def add_command(
    commands: Any, name: str, summary: str, description: str, examples: Sequence[str], **options: Any
) -> argparse.ArgumentParser:
    """A parser of the command ``name`` among ``commands``.

    summary: for the list of commands. description, examples: for the command's own help; an example is what
    follows the name.
    """
    lines = "\n".join(f"  %(prog)s {example}".rstrip() for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    return parser


def add_config_flags(parser: argparse.ArgumentParser, kind: type[Any], defaults: str = "") -> None:
    """One flag for each setting of ``kind``, in a group for each class that it inherits settings from.

    Only flags that are given end up in the parsed arguments. Values are kept as text and converted with the
    setting's type where the settings are put together, so that a flag and a line of YAML are read alike.
    defaults: what the groups' titles say of values that are not given.
    """
    types = setting_types(kind)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(kind):
        title = _group_of(kind, field.name) + defaults
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"].replace("%", "%%")
        text += "" if field.default in (None, "") else f" ({format_value(field.default)})"
        if types[field.name] is bool:
            groups[title].add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            groups[title].add_argument(flag, default=argparse.SUPPRESS, metavar=field.name.upper(), help=text)


def _group_of(kind: type[Any], name: str) -> str:
    """The title of the class from which ``kind`` has the setting ``name``."""
    bases: Sequence[Any] = kind.__mro__
    owner = next(base for base in reversed(bases) if name in vars(base).get("__annotations__", {}))
    title: str = owner.settings_title
    return title


def given_settings(arguments: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The settings of ``kind`` that were given as flags; ``none`` is no value where there may be none."""
    given, types = vars(arguments), setting_types(kind)

    def means_nothing(field: Any, value: Any) -> bool:
        may_be_none = type(None) in get_args(types[field.name]) and not field.metadata["none_is_text"]
        return bool(value == "none" and may_be_none)

    return {
        field.name: None if means_nothing(field, value) else value
        for field in dataclasses.fields(kind)
        if (value := given.get(field.name, _NOT_GIVEN)) is not _NOT_GIVEN
    }


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Where the settings of a training run come from, and what becomes of an earlier run."""
    parser.add_argument("--config", action="append", help="YAML file, or the name of one in models/configs")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=("auto",),
        help="go on from the run's last checkpoint; auto: start if there is no such run yet",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="time a few steps, say what the run would take, and leave nothing behind",
    )


def training_config(arguments: argparse.Namespace, kind: type[Config]) -> Config:
    """The settings of a training run: those of the run to resume or of ``--config``, then the flags."""
    files = arguments.config or [None]
    if len(files) > 1:
        raise ValueError(f"config is given twice, {' and '.join(files)}; accepted: one (--config)")
    given = given_settings(arguments, kind)
    return start_config(kind, given, config=files[0], resume=bool(arguments.resume))


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Whether a model's own class may be imported, see :func:`models.pretrained.importing`."""
    parser.add_argument(
        "--allow-import",
        action="store_true",
        help="import the module that a model of your own names, which runs its code",
    )


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Which device the command works on."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto: a GPU where torch finds one)"
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """A trained run, and which data to use with it."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a trained run, for example runs/NAME")
    add_device_flag(parser)
    add_import_flag(parser)
    parser.add_argument(
        "--batch-size", type=int, default=256, help="items, images for example, in a batch (256)"
    )
    add_config_flags(parser, DataConfig, ", by default those of the run")


def opened_config(arguments: argparse.Namespace) -> tuple[TrainConfig, TrainConfig]:
    """The settings of the run that a command names, and these with the data that the flags give."""
    stored = read_run_config(arguments.run_folder)
    return stored, stored.with_values(given_settings(arguments, DataConfig), "flags")


def check_output(
    path: str | Path, *runs: str | Path, folder: bool = False, replaces: Sequence[Path] = ()
) -> Path:
    """``path`` as a Path; ValueError unless a file, or with ``folder`` a folder, can be written there.

    runs: folders of the runs, or of the studies, that the command is of; nothing is written into another run.
    replaces: what the command may write again of that which training and the commands wrote.
    """
    target = Path(path)
    _check_runs(target, [Path(run).resolve() for run in runs], [place.resolve() for place in replaces])
    if target.exists() and target.is_dir() != folder:
        kind, accepted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise ValueError(f"out is {target}, which is {kind}; accepted: the path of {accepted} (--out)")
    ancestor = target
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if ancestor != target and not ancestor.is_dir():
        raise ValueError(
            f"out is {target}, which cannot be written, as {ancestor} is no folder; give another path (--out)"
        )
    if not os.access(ancestor, os.W_OK):
        raise ValueError(f"out is {target}, but {ancestor} may not be written to; give another path (--out)")
    return target


def _check_runs(target: Path, own: Sequence[Path], replaces: Sequence[Path]) -> None:
    """ValueError where ``target`` is in a run outside ``own``, or in place of what is not in ``replaces``."""
    run, place = enclosing_run(target), target.resolve()
    accepted = "accepted: a path outside other runs (--out)"
    if run is None:
        return
    if not any(folder in (run, *run.parents) for folder in own):
        raise ValueError(f"out is {target}, which lies in the run {run}; {accepted}")
    others = {path.resolve() for path in RunLayout(run).written} - set(replaces)
    if place == run or not others.isdisjoint((place, *place.parents)):
        raise ValueError(f"out is {target}, which holds other files of the run; {accepted}")
