"""``encode``: codes and labels of every image into a memory-mapped Arrow store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.autoencoders.discrete import require_codes
from models.cli.flags import (
    add_command,
    add_config_flags,
    add_model_flags,
    check_output,
    given_settings,
    opened_config,
)
from models.data.augment import AugmentSettings
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
            "runs/demo --copies 4 --shift 0.1 --zoom 0.1",
        ],
    )
    add_model_flags(parser)
    parser.add_argument("--out", help="folder of the store (RUN/codes)")
    parser.add_argument(
        "--shard-size", type=int, default=16_384, help="items, images for example, in a file (16384)"
    )
    parser.add_argument(
        "--copies", type=int, default=1, help="of each training image, all but one augmented (1)"
    )
    add_config_flags(parser, AugmentSettings, " of the copies, by default as the run was trained")
    parser.add_argument("--overwrite", action="store_true", help="replace the codes in the folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.codes.encode import encode
    from models.runs.device import find_device
    from models.runs.export import usable_model

    layout = RunLayout(Path(arguments.run_folder))
    _, config = opened_config(arguments)
    changes = given_settings(arguments, AugmentSettings)
    if changes and arguments.copies == 1:
        name = next(iter(changes))
        raise ValueError(f"{name} is for copies of the training images; give their number (--copies)")
    folder = check_output(arguments.out or layout.codes, layout.folder, folder=True, replaces=[layout.codes])
    model, data = open_run(layout.folder, config, arguments.device, progress=True)
    print(data.describe(), flush=True)
    store = encode(
        require_codes(model),
        data,
        folder,
        source=str(usable_model(layout.folder)),
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
        device=find_device(arguments.device),
        copies=arguments.copies,
        augmentation=config.with_values(changes, "flags"),
        overwrite=arguments.overwrite,
        progress=True,
    )
    sizes = ", ".join(f"{len(split)} {name}" for name, split in store.splits.items())
    print(f"codes of {sizes} {data.kind.items} in {folder}")
