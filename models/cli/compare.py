"""``compare``: settings that differ, figures and curves of several runs beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, check_output


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        "show runs beside each other",
        "Show the settings that differ, what was reached and the curves of several runs.",
        ["runs/demo runs/other", "runs/study/* --out comparison"],
    )
    parser.add_argument("run_folders", metavar="RUN", nargs="+", help="folder of a train or train-prior run")
    parser.add_argument("--out", help="folder of the tables and the figure (compare, beside the first run)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.training.compare import compare

    folders = [folder for folder in arguments.run_folders if Path(folder).is_dir()]
    for folder in arguments.run_folders:
        if folder not in folders:
            raise FileNotFoundError(f"{folder} does not exist; give the folder of a run")
    out = check_output(arguments.out or Path(folders[0]).resolve().parent / "compare", *folders, folder=True)
    print("\n".join(compare(folders, out)))
    print(f"tables and figure in {out}")
