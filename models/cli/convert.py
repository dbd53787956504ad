"""``convert``: a checkpoint of another implementation as a run that the other commands take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, add_config_flags, check_output, given_settings
from models.data.settings import DataConfig
from models.settings import setting_types


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert",
        "convert a foreign checkpoint",
        "Convert a checkpoint of rosinality's VQ-VAE-2 or of the zalando VQ-VAE notebook into a run.",
        [
            "checkpoint.pt --out runs/converted --data path/to/images --size 256",
        ],
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
        raise ValueError(f"out is {folder}, which exists; accepted: a new folder")
    check_output(folder, folder=True)
    place = {"name": folder.name, "runs": str(folder.parent)}
    data_settings = given_settings(arguments, DataConfig) | place
    TrainConfig.from_mapping(data_settings, "flags")  # before the checkpoint is read, which takes longer
    model = convert_file(arguments.checkpoint)
    # Arguments of the model and settings of a run bear the same names where they mean the same.
    names = setting_types(TrainConfig)
    model_settings = {n: value for n, value in model.config.items() if n in names and value is not None}
    model_settings["model"] = type(model).__name__.lower()
    config = TrainConfig.from_mapping(model_settings | data_settings, str(arguments.checkpoint))
    model.save_pretrained(config.layout.model)
    config.save(config.layout.config)
    print(
        f"{type(model).__name__} in {config.layout.model}; "
        f"evaluate it with `python -m models evaluate {folder}`"
    )
