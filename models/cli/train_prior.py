"""``train-prior``: one autoregressive prior for each level of a store of codes."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from models.cli.flags import add_command, add_config_flags, add_run_flags, training_config
from models.runs.config import PriorConfig


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "train-prior",
        "train priors over codes",
        "Train one autoregressive prior for each level of the codes that `encode` wrote.",
        [
            "--config demo-prior --codes runs/demo/codes",
            "--codes runs/demo/codes --prior pixelcnn --name pixelcnn --resume",
        ],
        conflict_handler="resolve",
    )
    add_run_flags(parser)
    add_config_flags(parser, PriorConfig)
    # True, false or by the codes: a flag without a value, instead of the one for settings that may be none.
    parser.add_argument(
        "--conditional",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help=next(field for field in fields(PriorConfig) if field.name == "conditional").metadata["help"],
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.training.prior import plan_prior, train_prior
    from models.training.processes import processes

    config = training_config(arguments, PriorConfig)
    if not config.codes:
        raise ValueError("codes is not given; accepted: a folder that `encode` wrote (--codes RUN/codes)")
    if arguments.dry_run:
        print(plan_prior(config).describe())
        return
    train_prior(config, resume=arguments.resume, overwrite=arguments.overwrite)
    if processes()[0] == 0:
        print(f"priors in {config.folder}, curves in {config.layout.curves}")
