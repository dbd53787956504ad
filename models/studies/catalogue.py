"""The studies in this folder, listed without importing what they need.

A study is a module of this folder with a function ``run(options)``. Its name is that of the file with ``-``
for ``_``; the first line of its docstring is its summary; ``OPTIONS`` names what it takes beside the options
of all studies (``seeds``, ``batch_size``), as a literal tuple; ``SETTINGS`` is a mapping whose keys are the
scales that it knows, of those in :data:`models.studies.runner.SCALES`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from models.studies.runner import SCALES, StudyOptions


@dataclass(frozen=True)
class Study:
    """What ``--help`` shows of a study.

    options: what it takes beside the options of all studies. scales: that it has settings for.
    """

    name: str
    summary: str
    options: tuple[str, ...]
    scales: tuple[str, ...]

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
    values = _assigned(tree)
    options: tuple[str, ...] = ast.literal_eval(values["OPTIONS"]) if "OPTIONS" in values else ()
    settings = values.get("SETTINGS")
    keys = settings.keys if isinstance(settings, ast.Dict) else []
    scales = tuple(key.value for key in keys if isinstance(key, ast.Constant) and key.value in SCALES)
    return Study(file.stem.replace("_", "-"), summary, options, scales or SCALES)


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """What is assigned to each name at the top of a module."""
    values: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            values[node.target.id] = node.value
    return values
