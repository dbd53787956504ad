"""The folder of a run: what may start in it, what training writes there, what it goes on from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.codes.store import DESCRIPTION_FILE
from models.runs.config import LoopConfig, PriorConfig, TrainConfig, read_yaml
from models.runs.history import read_history

BEST, LAST = "best.ckpt", "last.ckpt"
CONFIG = "config.yaml"
# All that training writes into RUNS/NAME beside config.yaml, as patterns: what --overwrite removes.
_BY_ANY = ("checkpoints", "logs", "tensorboard", "curves.png")
WRITTEN: dict[type[LoopConfig], tuple[str, ...]] = {
    TrainConfig: (*_BY_ANY, "model", "reconstructions"),
    PriorConfig: (*_BY_ANY, "level[0-9]*", DESCRIPTION_FILE),
}
# What Lightning and our modules read back from a checkpoint.
_PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "loader")


def check_folder(config: LoopConfig, resume: bool, overwrite: bool) -> None:
    """ValueError unless the run may start in its folder; changes nothing.

    An earlier run there must be of the same kind (train or train-prior), and the codes that a prior reads
    must lie elsewhere.
    """
    folder = config.folder
    stored = folder / CONFIG
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; give one of them")
    if isinstance(config, PriorConfig) and config.codes:
        codes = Path(config.codes).resolve()
        if folder.resolve() in (codes, *codes.parents):
            raise ValueError(
                f"codes is {config.codes}, which lies in the prior's own folder {folder}; choose another "
                f"name (--name)"
            )
    if not stored.is_file():
        if resume:
            raise ValueError(f"{folder} holds no run to go on with; leave --resume out to start it")
        found = _written(config)
        if found:
            raise ValueError(
                f"{folder} holds {found[0].name}, but no {CONFIG} says of what run; choose another name "
                f"(--name)"
            )
        return
    earlier = _earlier(config, stored)
    if resume:
        config.check_resumes(earlier)
        _check_goes_on(config)
    elif not overwrite:
        raise ValueError(
            f"{folder} holds an earlier run; go on with it (--resume), replace it (--overwrite) or "
            f"choose another name (--name)"
        )


def prepare_folder(config: LoopConfig, model: nn.Module, resume: bool, overwrite: bool) -> Path | None:
    """Make the run's folder, write its configuration and return the checkpoint to go on from, if any.

    To be called last, after all that can refuse the settings; raises ValueError for a checkpoint that does
    not fit ``model``, a Lightning module. Overwriting removes what training wrote, see ``WRITTEN``. What
    other commands made of the earlier run stays: its ``codes/``, which `encode` refuses to mix with those
    of another model, samples and evaluations.
    """
    last = config.folder / "checkpoints" / LAST
    checkpoint = last if resume and last.is_file() else None
    if checkpoint is not None:
        _check_fits(read_checkpoint(checkpoint), model, checkpoint)
    if int(os.environ.get("RANK", "0")) == 0:
        if overwrite:
            for path in _written(config):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        config.folder.mkdir(parents=True, exist_ok=True)
        config.save(config.folder / CONFIG)
    return checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint of a run. Raises ValueError if the file is damaged or of something else."""
    remedy = "train again with --overwrite, or choose another name (--name)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint can make unpickling raise anything
        raise ValueError(f"{path} is no checkpoint that can be read; {remedy}") from error
    missing = [part for part in _PARTS if not isinstance(state, dict) or part not in state]
    if missing:
        raise ValueError(f"{path} is no checkpoint of a run, as it lacks {missing[0]}; {remedy}")
    return dict(state)


def _earlier(config: LoopConfig, stored: Path) -> LoopConfig:
    """The settings of the run in the folder. ValueError unless it is of the kind of ``config``."""
    values = read_yaml(stored)
    required = {"name", "runs", "codes" if isinstance(config, PriorConfig) else "model"}
    try:
        earlier = type(config).from_mapping(values, str(stored))
    except ValueError as error:
        if "--name" in str(error):
            raise
        raise ValueError(f"{error}; choose another name (--name)") from error
    if not required <= set(values):
        raise ValueError(
            f"{stored} is not of a {config.command} run, as it lacks {min(required - set(values))}; choose "
            f"another name (--name)"
        )
    return earlier


def _check_goes_on(config: LoopConfig) -> None:
    """ValueError if the run was trained, but its last checkpoint is gone: it would start over."""
    folder = config.folder
    if (folder / "checkpoints" / LAST).is_file():
        return
    models = [path.name for path in _written(config) if path.name.startswith(("model", "level"))]
    best = [f"checkpoints/{BEST}"] if (folder / "checkpoints" / BEST).is_file() else []
    found = models or best or (["logged steps"] if read_history(folder) else [])
    if found:
        raise ValueError(
            f"{folder} has {found[0]}, but no checkpoints/{LAST} to go on from; train again with "
            f"--overwrite, or choose another name (--name)"
        )


def _check_fits(checkpoint: dict[str, Any], model: nn.Module, path: Path) -> None:
    there = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    different = [name for name in there | here if there.get(name) != here.get(name)]
    if different:
        raise ValueError(
            f"{path} is of another model: {different[0]} has shape {there.get(different[0], 'none')} there "
            f"and {here.get(different[0], 'none')} here; train again with --overwrite"
        )


def _written(config: LoopConfig) -> list[Path]:
    return sorted(path for pattern in WRITTEN[type(config)] for path in config.folder.glob(pattern))
