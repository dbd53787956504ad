"""``convert``: a checkpoint of another implementation as a run that the other commands take."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from models.cli.flags import add_config_flags, given_settings
from models.data.settings import DataConfig


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a foreign checkpoint",
        description="Convert a checkpoint of rosinality's VQ-VAE-2 or of the zalando VQ-VAE notebook.",
    )
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument("--out", required=True, help="folder of the run to write, for example runs/NAME")
    add_config_flags(parser, DataConfig, ", for the commands that use the model")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.autoencoders.convert import convert_file
    from models.runs.config import TrainConfig

    folder = Path(arguments.out)
    if folder.exists():
        raise ValueError(f"{folder} exists; give a new folder")
    own = {"name": folder.name, "runs": str(folder.parent)}
    given = given_settings(arguments, DataConfig) | own
    TrainConfig.from_mapping(given, "flags")  # before the checkpoint is read, which takes longer
    model = convert_file(arguments.checkpoint)
    # The settings that describe the model under the same name there and here.
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    found = {name: value for name, value in model.config.items() if name in settings}
    found["model"] = type(model).__name__.lower()
    config = TrainConfig.from_mapping(found | given, str(arguments.checkpoint))
    model.save_pretrained(folder / "model")
    config.save(folder / "config.yaml")
    print(
        f"{type(model).__name__} in {folder / 'model'}; evaluate it with `python -m models evaluate {folder}`"
    )
