"""``reconstruct``: originals beside reconstructions, and every reconstruction as a file if asked for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, add_model_flags, check_output, opened_config
from models.progress import progress_bar
from models.runs.layout import RunLayout
from models.runs.open import open_run
from models.runs.pictures import made_of
from vq_kernels.checks import check_integer


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "reconstruct",
        "write reconstructions",
        "Write originals beside reconstructions, and every reconstruction as a file if asked for.",
        [
            "runs/demo",
            "runs/demo --split validation --images",
        ],
    )
    add_model_flags(parser)
    parser.add_argument("--split", default="test", help="train, validation or test (test)")
    parser.add_argument("--count", type=int, default=64, help="items in the picture (64)")
    parser.add_argument(
        "--images", action="store_true", help="also write each reconstruction of the split as a file"
    )
    parser.add_argument("--out", help="folder (RUN/reconstruct-SPLIT)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from models.data import BatchLoader, to_float
    from models.evaluation.pictures import save_image, side_by_side
    from models.runs.device import find_device

    check_integer(1, count=arguments.count, batch_size=arguments.batch_size)
    device = find_device(arguments.device)
    layout = RunLayout(Path(arguments.run_folder))
    _, config = opened_config(arguments)
    folder = check_output(arguments.out or layout.reconstruct(arguments.split), layout.folder, folder=True)
    model, data = open_run(layout.folder, config, device, progress=True)
    print(data.describe(), flush=True)
    model.check_size(data)
    split, kind = data.split(arguments.split), data.kind
    with torch.no_grad(), made_of(folder, layout):
        x = to_float(split.batch(range(min(arguments.count, len(split)))).to(device))
        reconstructed = torch.cat([model.reconstruct(batch) for batch in x.split(arguments.batch_size)])
        picture = side_by_side(kind.pictures(x), kind.pictures(reconstructed), kind.columns)
        path = save_image(picture, folder / "side_by_side.png")
        print(f"originals beside reconstructions in {path}")
        if kind.has_files:
            numbers = [f"{number:06d}" for number in range(len(x))]
            kind.write_all(x, folder / "originals", numbers)
            kind.write_all(reconstructed, folder / "reconstructions", numbers)
            print(f"the same {len(x)} as files in {folder / 'originals'} and {folder / 'reconstructions'}")
        if not arguments.images:
            return
        # Those of an earlier run on more images would pass for this one's.
        files = folder / kind.items
        kind.clear(files)
        number = 0
        with progress_bar(len(split), "reconstruct", kind.item, enabled=True) as bar:
            for images, _ in BatchLoader(split, arguments.batch_size):
                for image in kind.to_levels(model.reconstruct(to_float(images.to(device)))).cpu():
                    kind.write(image, files / f"{number:06d}")
                    number += 1
                bar.update(len(images))
    print(f"{number} reconstructions in {files}")
