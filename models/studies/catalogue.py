"""The studies in this folder, listed without importing what they need.

A study is a module of this folder with a function ``run(options)``. Its name is that of the file with ``-``
for ``_``; the first line of its docstring is its summary; ``OPTIONS`` names what it takes beside the options
of all studies (``seeds``, ``batch_size``), as a literal tuple.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from models.studies.runner import StudyOptions


@dataclass(frozen=True)
class Study:
    """What ``--help`` shows of a study; options: what it takes beside the options of all studies."""

    name: str
    summary: str
    options: tuple[str, ...]

    def load(self) -> Callable[[StudyOptions], Path]:
        """The function that runs the study, writes its report and returns the folder of all."""
        module = import_module("models.studies." + self.name.replace("-", "_"))
        study = cast(Callable[[StudyOptions], Path], module.run)

        def run_and_report(options: StudyOptions) -> Path:
            from models.report.page import write_report

            folder = study(options)
            write_report([folder])
            return folder

        return run_and_report


def list_studies() -> dict[str, Study]:
    """Every study by name, in alphabetical order."""
    studies = (_read_study(file) for file in sorted(Path(__file__).parent.glob("*.py")))
    return {study.name: study for study in studies if study is not None}


def _read_study(file: Path) -> Study | None:
    """The study in a source file; None for a module without ``run``."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    if not any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
        return None
    summary = (ast.get_docstring(tree) or "").partition("\n")[0].removesuffix(".")
    assigned = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["OPTIONS"]
    ]
    options: tuple[str, ...] = ast.literal_eval(assigned[0]) if assigned else ()
    return Study(file.stem.replace("_", "-"), summary, options)
