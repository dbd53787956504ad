"""``encode``: codes and labels of every image into a memory-mapped Arrow store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.autoencoders.base import require_codes
from models.cli.flags import add_command, add_model_flags, check_output, opened_config
from models.runs.layout import RunLayout
from models.runs.open import open_run


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "encode",
        "write the codes of a data set",
        "Write codes and labels of every split, memory-mapped; run again after an interruption to go on.",
        [
            "runs/demo",
            "runs/demo --data path/to/images --size 8 --channels 1 --out codes",
        ],
    )
    add_model_flags(parser)
    parser.add_argument("--out", help="folder of the store (RUN/codes)")
    parser.add_argument(
        "--shard-size", type=int, default=16_384, help="items, images for example, in a file (16384)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the codes in the folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.codes.encode import encode
    from models.runs.device import find_device
    from models.runs.export import usable_model

    layout = RunLayout(Path(arguments.run_folder))
    _, config = opened_config(arguments)
    model, data = open_run(layout.folder, config, arguments.device, progress=True)
    print(data.describe(), flush=True)
    folder = check_output(arguments.out or layout.codes, folder=True)
    store = encode(
        require_codes(model),
        data,
        folder,
        source=str(usable_model(layout.folder)),
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
        device=find_device(arguments.device),
        overwrite=arguments.overwrite,
        progress=True,
    )
    sizes = ", ".join(f"{len(split)} {name}" for name, split in store.splits.items())
    print(f"codes of {sizes} {data.kind.items} in {folder}")
