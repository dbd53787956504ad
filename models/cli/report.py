"""``report``: one self-contained page of a study or of runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, check_output
from models.runs.layout import RunLayout


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        "write one page of runs or of a study",
        "Write one HTML file with the tables, pictures, curves, sounds and settings of runs or of a study.",
        ["runs/demo", "runs/demo runs/other --out report.html", "runs/reproduce-celeba-sweep-small"],
    )
    parser.add_argument("folders", metavar="RUN", nargs="+", help="folder of a run, a study or a sweep")
    parser.add_argument("--out", help="the file (report.html in the folder, or beside the first of several)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.report.page import write_report

    out = None
    if arguments.out:
        pages = [RunLayout(Path(folder)).report for folder in arguments.folders]
        out = check_output(arguments.out, *arguments.folders, replaces=pages)
    print(f"written to {write_report(arguments.folders, out)}")
