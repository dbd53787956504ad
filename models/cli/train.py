"""``train``: a VAE, VQ-VAE or VQ-VAE-2."""

from __future__ import annotations

import argparse
from typing import Any

from models.cli.flags import add_command, add_config_flags, add_import_flag, add_run_flags, training_config
from models.runs.config import TrainConfig


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "train",
        "train an autoencoder",
        "Train a VAE, VQ-VAE or VQ-VAE-2; on several devices: torchrun --nproc-per-node N -m models train",
        [
            "--config demo",
            "--config mnist --epochs 10 --name mnist-long",
            "--data path/to/images --size 64 --model vqvae2 --downscales 4,2",
        ],
    )
    add_run_flags(parser)
    add_config_flags(parser, TrainConfig)
    add_import_flag(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.training.autoencoder import plan, train
    from models.training.processes import processes

    config = training_config(arguments, TrainConfig)
    if arguments.dry_run:
        print(plan(config).describe())
        return
    train(config, resume=arguments.resume, overwrite=arguments.overwrite)
    if processes()[0] == 0:
        print(f"model in {config.layout.model}, curves in {config.layout.curves}")
