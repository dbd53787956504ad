"""``export``: the model of a run that is not finished, as a finished run has it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, add_import_flag
from models.files import read_object
from models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from models.runs.layout import RunLayout
from models.runs.rules import enclosing_run


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
        config = TrainConfig.of_run(layout.config)
        data = data_of_run(layout, load_data(config, stream=True), config, config)
        calibrate(models[0], data.validation, config.batch_size)
        targets = [Path(arguments.out) if arguments.out else layout.model]
    else:
        folder = RunLayout(Path(arguments.out)) if arguments.out else layout
        targets = [folder.level(number) for number in range(len(models))]
    for model, target in zip(models, targets, strict=True):
        _check_target(target, arguments.out, layout, type(model).__name__)
    for model, target in zip(models, targets, strict=True):
        model.save_pretrained(target)
    print(f"the {arguments.checkpoint} checkpoint of {layout.folder} in {', '.join(map(str, targets))}")


def _check_target(target: Path, out: str | None, layout: RunLayout, kind: str) -> None:
    """ValueError where a model of class ``kind`` in ``target`` would replace something else."""
    if out is None:
        return
    accepted = "accepted: a new folder outside other runs, or an earlier export of such a model (--out)"
    run, own = enclosing_run(target), layout.folder.resolve()
    if run not in (None, own):
        raise ValueError(f"out is {out}, which lies in the run {run}; {accepted}")
    place = target.resolve()
    if run == own and (place == own or layout.checkpoints.resolve() in (place, *place.parents)):
        raise ValueError(f"out is {out}, which holds other files of the run; {accepted}")
    files = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (target / name).exists()]
    if not files:
        return
    found = read_object(target / CONFIG_FILE, accepted).get("class") if CONFIG_FILE in files else None
    if found != kind:
        raise ValueError(f"out is {out}, where {target / files[0]} is not of a {kind}; {accepted}")
