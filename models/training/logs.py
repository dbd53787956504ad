"""Logs that a resumed run goes on writing: one table and one run of TensorBoard, whatever interrupted it."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from models.runs.layout import RunLayout


def make_loggers(layout: RunLayout, first_step: int, kinds: Sequence[str]) -> list[Logger]:
    """What writes the logged values into the folder of a run, for each of ``kinds``.

    first_step: of those that are logged now; what earlier attempts have logged from there on counts no more.
    ValueError for ``wandb`` where it is not installed.
    """
    loggers: list[Logger] = [RunTable(layout.folder, layout.logs.name, first_step)]
    if "tensorboard" in kinds:
        loggers.append(
            TensorBoardLogger(
                str(layout.folder),
                name=layout.tensorboard.name,
                version=latest_version(layout.tensorboard),
                purge_step=first_step or None,
                default_hp_metric=False,
            )
        )
    if "wandb" in kinds:
        check_installed(kinds)
        # The same run for every attempt, wherever it is synchronised later.
        identity = hashlib.sha256(str(layout.folder.resolve()).encode()).hexdigest()[:12]
        loggers.append(
            WandbLogger(
                name=layout.folder.name,
                save_dir=str(layout.folder),
                project=layout.folder.resolve().parent.name,
                id=identity,
                resume="allow",
                offline=True,
            )
        )
    return loggers


def check_installed(kinds: Sequence[str]) -> None:
    """ValueError if one of ``kinds`` is a logger whose package is missing."""
    if "wandb" in kinds and find_spec("wandb") is None:
        raise ValueError("logger wandb needs the package wandb, which is not installed; pip install wandb")


def latest_version(folder: Path) -> int:
    """N of the last ``version_N`` in a folder of logs; 0 where there is none."""
    numbers = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


class RunTable(CSVLogger):
    """``metrics.csv``, to which a resumed run adds its rows."""

    def __init__(self, folder: Path, name: str, first_step: int) -> None:
        super().__init__(folder, name=name, version=latest_version(folder / name))
        self._first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the table, made when the first row is logged."""
        if self._experiment is None:
            self._experiment = _TableWriter(self.log_dir, self._first_step)
        return self._experiment


class _TableWriter(ExperimentWriter):
    def __init__(self, folder: str, first_step: int) -> None:
        super().__init__(folder)
        self._file = Path(self.metrics_file_path)
        if not self._file.is_file():
            return
        with open(self._file, newline="", encoding="utf-8", errors="replace") as handle:
            rows = [row for row in csv.DictReader(handle) if _step(row) < first_step]
        self._file.unlink()
        if rows:
            earlier: list[Any] = [{name: cell for name, cell in row.items() if cell} for row in rows]
            self.metrics = earlier
            self.save()

    def save(self) -> None:
        """Write the rows that wait; OSError naming the table, for example on a full disk."""
        try:
            super().save()
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self.metrics_file_path)) from error

    def _check_log_dir_exists(self) -> None:
        """Earlier rows stay, where the base class would remove them."""


def _step(row: dict[str, Any]) -> float:
    """The step of a row; infinity for one that a killed process left cut off."""
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        return float("inf")
