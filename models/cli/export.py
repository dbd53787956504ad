"""``export``: the model of a run that is not finished, as a finished run has it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, add_import_flag, check_output
from models.files import read_object
from models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from models.runs.layout import RunLayout


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        "write the model of a checkpoint",
        "Write the model of a run that is not finished, as a finished run has it.",
        ["runs/demo", "runs/demo --checkpoint last --out exported"],
    )
    parser.add_argument("run_folder", metavar="RUN", help="folder of a train or train-prior run")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="of lowest loss, or last (best)",
    )
    parser.add_argument("--out", help="folder (RUN/model; of priors: RUN, which then holds level0, ...)")
    add_import_flag(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.autoencoders.base import Autoencoder
    from models.data import load_data
    from models.evaluation.calibration import calibrate
    from models.runs.config import TrainConfig
    from models.runs.data import data_of_run
    from models.runs.export import checkpoint_models

    layout = RunLayout(Path(arguments.run_folder))
    models = checkpoint_models(layout.folder, arguments.checkpoint)
    if isinstance(models[0], Autoencoder):
        own, targets = [layout.model], [Path(arguments.out) if arguments.out else layout.model]
    else:
        folder = RunLayout(Path(arguments.out)) if arguments.out else layout
        own = targets = [folder.level(number) for number in range(len(models))]
    if arguments.out:
        for model, target in zip(models, targets, strict=True):
            check_output(target, layout.folder, folder=True, replaces=own)
            _check_class(target, type(model).__name__)
    if isinstance(models[0], Autoencoder):  # once it may be written: this reads the images
        config = TrainConfig.of_run(layout.config)
        data = data_of_run(layout, load_data(config, stream=True), config, config)
        calibrate(models[0], data.validation, config.batch_size)
    for model, target in zip(models, targets, strict=True):
        model.save_pretrained(target)
    print(f"the {arguments.checkpoint} checkpoint of {layout.folder} in {', '.join(map(str, targets))}")


def _check_class(target: Path, kind: str) -> None:
    """ValueError where what ``target`` holds of a model is not of class ``kind``."""
    accepted = "accepted: a new folder, or an earlier export of such a model (--out)"
    files = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (target / name).exists()]
    if not files:
        return
    found = read_object(target / CONFIG_FILE, accepted).get("class") if CONFIG_FILE in files else None
    if found != kind:
        raise ValueError(f"out is {target}, where {target / files[0]} is not of a {kind}; {accepted}")
