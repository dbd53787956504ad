"""``sweep``: many runs over a grid or a list of settings, with one table and one figure."""

from __future__ import annotations

import argparse
from typing import Any

from models.cli.flags import add_command, add_config_flags, given_settings
from models.runs.config import TrainConfig
from models.runs.start import start_config


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "sweep",
        "train over a grid or a list of settings",
        "Train over a grid or a list of any settings; run again after an interruption to go on.",
        [
            "--config demo --name study --grid beta=0.25,1.25 --grid lr=1e-3,1e-4",
            '--config demo --name study --case "beta=0.25 lr=1e-3" --case "beta=1.25 lr=1e-4" --by ssim',
        ],
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="SETTING=VALUE,VALUE",
        help="values of a setting; several span a grid (of settings that are lists: VALUE;VALUE)",
    )
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="'SETTING=VALUE SETTING=VALUE'",
        help="settings of one run",
    )
    parser.add_argument("--by", default="mse", help="figure of the validation split that ranks them (mse)")
    parser.add_argument("--config", help="YAML file, or the name of one in models/configs")
    parser.add_argument("--overwrite", action="store_true", help="replace runs of other settings")
    add_config_flags(parser, TrainConfig, ", of every run")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.data import load_data
    from models.runs.device import find_device
    from models.training.sweep import Diverged, parse_cases, sweep, write_sweep

    cases = parse_cases(arguments.grid, arguments.case)
    config = start_config(TrainConfig, given_settings(arguments, TrainConfig), config=arguments.config)
    if config.layout.config.is_file():
        raise ValueError(f"{config.folder} holds a run; choose another name (--name)")
    data = load_data(config, progress=config.progress)
    print(data.describe(), flush=True)
    device = find_device("auto" if config.accelerator == "auto" else config.accelerator)
    diverged: list[Diverged] = []
    how: dict[str, Any] = {"by": arguments.by, "overwrite": arguments.overwrite, "device": device}
    swept = sweep(config, cases, data, on_diverged=diverged.append, **how)
    print("\n" + write_sweep(config.folder, swept, data, "validation", arguments.by, diverged))
    print(f"table{' and figure' if swept else ''} in {config.folder}", flush=True)
    if diverged:
        names = ", ".join(one.config.name for one in diverged)
        raise FloatingPointError(
            f"{len(diverged)} of {len(cases)} cases diverged: {names}; "
            f"take a lower learning rate for them (lr) or clip gradients (clip=1)"
        )
