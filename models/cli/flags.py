"""Flags made from the fields of a settings class, and what several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from models.data.settings import DataConfig
from models.runs.config import LoopConfig, TrainConfig, read_yaml

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder, CodeModel
    from models.data import ImageData
    from models.priors.base import AutoregressivePrior

Config = TypeVar("Config", bound=LoopConfig)


def add_config_flags(parser: argparse.ArgumentParser, kind: type[Any], defaults: str = "") -> None:
    """One flag for each field of ``kind``; only those given end up in the parsed arguments.

    Values are kept as text and converted with the field's type where the settings are put together, so
    that a flag and a line of YAML are read alike.
    """
    group = parser.add_argument_group("settings" + defaults)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"].replace("%", "%%")
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += "" if field.default in (None, "") else f" ({shown})"
        if hints[field.name] is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            group.add_argument(flag, default=argparse.SUPPRESS, metavar=field.name.upper(), help=text)


def given_settings(arguments: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The settings of ``kind`` that were given as flags; ``none`` stands for no value."""
    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return {name: None if value == "none" else value for name, value in given.items()}


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file, or the name of one in models/configs")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run of this name")


def run_config(arguments: argparse.Namespace, kind: type[Config]) -> Config:
    """Settings of a training run: those of the run to resume or of ``--config``, then the flags."""
    given = given_settings(arguments, kind)
    values: dict[str, Any] = {}
    if arguments.config:
        values = read_yaml(arguments.config)
    merged = kind.from_mapping(values | given, arguments.config or "flags")
    earlier = merged.folder / "config.yaml"
    if arguments.resume and not arguments.config and earlier.is_file():
        here = {"name": merged.name, "runs": merged.runs}  # the folder may have moved
        merged = kind.from_mapping(read_yaml(earlier) | here | given, str(earlier))
    return merged


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto: a GPU where torch finds one)"
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """A trained run, and which data to use with it."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a trained run, for example runs/NAME")
    add_device_flag(parser)
    parser.add_argument("--batch-size", type=int, default=256, help="images in a batch (256)")
    add_config_flags(parser, DataConfig, ", by default those of the run")


def open_run(arguments: argparse.Namespace) -> tuple[TrainConfig, Autoencoder, ImageData]:
    """The settings, the model and the data, for a single pass, of the run that a command names."""
    from models.data import load_data
    from models.pretrained import load_pretrained

    folder = Path(arguments.run_folder)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder / 'config.yaml'} does not exist; give the folder of a trained run")
    model: Any = load_pretrained(folder / "model", arguments.device)
    config = TrainConfig.load(folder / "config.yaml")
    changed = given_settings(arguments, DataConfig)
    config = TrainConfig.from_mapping(read_yaml(folder / "config.yaml") | changed, "flags")
    return config, model, load_data(config, stream=True)


def check_output(path: str | Path, *, folder: bool = False) -> Path:
    """``path`` as a Path; ValueError unless a file, or with ``folder`` a folder, can be written there."""
    found = Path(path)
    if found.exists() and found.is_dir() != folder:
        kind, wanted = ("a file", "a folder") if folder else ("a folder", "a file")
        raise ValueError(f"{found} is {kind}; give the path of {wanted} (--out)")
    there = found
    while not there.exists() and there != there.parent:
        there = there.parent
    if there != found and not there.is_dir():
        raise ValueError(f"{found} cannot be written, as {there} is no folder; give another path (--out)")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} may not be written to; give another path (--out)")
    return found


def as_code_model(model: Autoencoder) -> CodeModel:
    """ValueError for a VAE, which has no codes."""
    from models.autoencoders.vae import VAE

    if isinstance(model, VAE):
        raise ValueError("this run trained a VAE, which has no codes; give a run of a vqvae or vqvae2")
    return model


def prior_levels(folder: str | Path) -> list[Path]:
    """The folders of the priors of a `train-prior` run, top level first; FileNotFoundError without any."""
    found = [path for path in Path(folder).glob("level*") if path.name.removeprefix("level").isdecimal()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no priors; train them with `python -m models train-prior`")
    return sorted(found, key=lambda path: int(path.name.removeprefix("level")))


def open_priors(folder: str | Path, device: str) -> list[AutoregressivePrior]:
    """The priors of a `train-prior` run, top level first."""
    from models.pretrained import load_pretrained

    priors: list[Any] = [load_pretrained(level, device) for level in prior_levels(folder)]
    return priors
