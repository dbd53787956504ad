"""``reproduce``: one of the published studies, small on digits or at paper scale on real data."""

from __future__ import annotations

import argparse
from typing import Any

from models.cli.flags import add_command
from models.studies.catalogue import list_studies
from models.studies.runner import StudyOptions


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "reproduce",
        "redo a published study",
        "Redo one of the published studies: small on digits, or on real data, in an hour or at paper scale.",
        ["likelihood", "celeba-sweep --scale real --data path/to/celeba64"],
    )
    studies = parser.add_subparsers(title="studies", metavar="STUDY", required=True)
    for listed in list_studies().values():
        study = add_command(
            studies,
            listed.name,
            listed.summary,
            f"{listed.summary}.",
            ["", "--data path/to/images --size 32"],
        )
        study.add_argument(
            "--data", help="digits, a folder or a hub id (digits; at other scales the study's own)"
        )
        study.add_argument(
            "--scale",
            choices=listed.scales,
            default="small",
            help="small: minutes on digits; real: real data, an hour on two cores at most (small)",
        )
        study.add_argument("--runs", default="runs", help="folder of all runs (runs)")
        study.add_argument("--seed", type=int, default=0, help="of every model, prior and sample (0)")
        study.add_argument("--name", help="name of the study's folder in RUNS (reproduce-STUDY-SCALE)")
        study.add_argument(
            "--overwrite", action="store_true", help="replace what was made there with other settings"
        )
        if "seeds" in listed.options:
            study.add_argument("--seeds", type=int, help="runs to average over, from --seed on")
        if "batch_size" in listed.options:
            study.add_argument(
                "--batch-size", type=int, help="of every model and prior, instead of the scale's"
            )
        study.add_argument("--limit", type=int, help="use at most this many images of each split")
        study.add_argument("--size", help="resize and crop images to this")
        study.add_argument("--label-column", help="column of the labels")
        study.add_argument("--epochs", type=int, help="epochs of every model, instead of the scale's")
        study.add_argument("--accelerator", default="auto", help="auto, cpu or gpu (auto)")
        study.add_argument(
            "--precision", help="32-true, bf16-mixed or 16-mixed (32-true; real: as the study has it)"
        )
        study.add_argument("--no-progress", action="store_true", help="no progress bars")
        study.set_defaults(run=run, study=listed)


def run(arguments: argparse.Namespace) -> None:
    options = StudyOptions(
        data=arguments.data,
        scale=arguments.scale,
        runs=arguments.runs,
        seed=arguments.seed,
        name=arguments.name,
        overwrite=arguments.overwrite,
        seeds=getattr(arguments, "seeds", None),
        batch_size=getattr(arguments, "batch_size", None),
        limit=arguments.limit,
        size=arguments.size,
        label_column=arguments.label_column,
        epochs=arguments.epochs,
        accelerator=arguments.accelerator,
        precision=arguments.precision,
        progress=not arguments.no_progress,
    )
    folder = arguments.study.load()(options)
    print(f"tables and figures in {folder}, and all of them in {folder / 'report.html'}")
