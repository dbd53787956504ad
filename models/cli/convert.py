"""``convert``: a checkpoint of another implementation into a folder for ``from_pretrained``."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a foreign checkpoint",
        description="Convert a checkpoint of rosinality's VQ-VAE-2 or of the zalando VQ-VAE notebook.",
    )
    parser.add_argument("checkpoint", help="the .pt file")
    parser.add_argument("--out", required=True, help="folder to write the model to")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.convert import convert_file

    model = convert_file(arguments.checkpoint)
    model.save_pretrained(arguments.out)
    print(f"{type(model).__name__} in {arguments.out}")
