"""Starting and resuming a run: what may start in its folder, and what training goes on from."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from models.files import only_writer
from models.runs.config import PriorConfig
from models.runs.layout import RunLayout
from models.runs.loop import LoopConfig
from models.runs.rules import enclosed_run, enclosing_run
from models.settings import check_applies, choices_of, read_yaml

Config = TypeVar("Config", bound=LoopConfig)
# What Lightning and our modules read back from a checkpoint.
_CHECKPOINT_ENTRIES = (
    *("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "loader"),
)


class RunInterrupted(KeyboardInterrupt):
    """A KeyboardInterrupt after the run's settings were written: there is something to go on with."""


def start_config(
    kind: type[Config], values: Mapping[str, Any], *, config: str | None = None, resume: bool = False
) -> Config:
    """The settings to train with: those of ``config``, or of the run to resume, changed by ``values``.

    kind: TrainConfig or PriorConfig. values: settings by name, as text or in their types. config: a YAML
    file, or the name of one in ``models/configs``. resume: without ``config``, the settings that ``values``
    leaves out are those of the run in the folder, which may have moved since. Raises ValueError, also for a
    setting that the chosen model does not have; the ``config.yaml`` of a run lists those of all models.
    """
    base = read_yaml(config) if config else {}
    settings = kind.from_mapping(base | dict(values), config or "flags")
    if config and not kind.is_of_run(base):
        # The file was written for the model that it names, whichever one the flags choose.
        named = {name: base[name] for name in choices_of(settings) & set(base)}
        check_applies(settings.with_values(named, config), base, config)
    stored = settings.layout.config
    if resume and not config and stored.is_file():
        place = {"name": settings.name, "runs": settings.runs}
        settings = kind.of_run(stored).with_values(dict(values) | place, "flags")
    check_applies(settings, values, "flags")
    return settings


def check_folder(config: LoopConfig, resume: bool, overwrite: bool) -> None:
    """ValueError unless the run may start in its folder; changes nothing.

    An earlier run there must be of the same kind (train or train-prior), and the codes that a prior reads
    must lie elsewhere.
    """
    folder, stored = config.folder, config.layout.config
    _check_writable(config)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; give one of them")
    if isinstance(config, PriorConfig) and config.codes:
        codes = Path(config.codes).resolve()
        if folder.resolve() in (codes, *codes.parents):
            raise ValueError(
                f"codes is {config.codes}, which lies in the prior's own folder {folder}; choose another "
                f"name (--name)"
            )
    outer = None if resume else enclosing_run(folder.resolve().parent)
    if outer is not None:
        raise ValueError(
            f"name is {config.name}, whose folder {folder} would lie in the run {outer}; choose another name "
            f"(--name)"
        )
    if not stored.is_file():
        if resume:
            raise ValueError(f"{folder} holds no run to go on with; leave --resume out to start it")
        outputs = config.layout.outputs(config.command)
        if outputs:
            raise ValueError(
                f"{folder} holds {outputs[0].name}, but no {stored.name} says of what run; choose another "
                f"name (--name)"
            )
        inner = enclosed_run(folder)
        if inner is not None:
            raise ValueError(
                f"name is {config.name}, whose folder {folder} holds the run {inner}; choose another name "
                f"(--name)"
            )
        return
    earlier = _earlier(config, stored)
    if resume:
        config.check_resumes(earlier)
        _check_has_checkpoint(config)
    elif not overwrite:
        raise ValueError(
            f"{folder} holds an earlier run; go on with it (--resume), replace it (--overwrite) or "
            f"choose another name (--name)"
        )


def _check_writable(config: LoopConfig) -> None:
    """ValueError unless the run's folder can be made, or written to; an attempt would leave it behind."""
    ancestor = config.folder
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        reason = f"{ancestor} is no folder"
    elif not os.access(ancestor, os.W_OK | os.X_OK):
        reason = f"{ancestor} may not be written to"
    else:
        return
    raise _unwritable(config, reason)


def _unwritable(config: LoopConfig, reason: str) -> ValueError:
    return ValueError(
        f"runs is {config.runs}, where {config.folder} cannot be written, as {reason}; give another "
        f"folder (--runs)"
    )


def already_done(config: LoopConfig) -> str:
    """``3 epochs are done already``, where these settings would end the run to go on with before that.

    Empty where they do not ask for less than the run's own, or leave something to do.
    """
    layout = config.layout
    if not layout.config.is_file():
        return ""
    earlier = type(config).of_run(layout.config)
    less = [name for name in ("epochs", "steps", "minutes") if _is_less(config, earlier, name)]
    for path in (layout.last, layout.best) if less else ():
        try:
            state = read_checkpoint(path)
        except ValueError:  # started_run says so
            continue
        seconds = state["callbacks"].get("TimeLimit", {}).get("seconds", 0.0)
        done = {"epochs": state["epoch"], "steps": state["global_step"], "minutes": round(seconds / 60, 2)}
        for name in less:
            if done[name] > getattr(config, name):
                return (
                    f"1 {name[:-1]} is done already"
                    if done[name] == 1
                    else f"{done[name]} {name} are done already"
                )
        return ""
    return ""


def _is_less(config: LoopConfig, earlier: LoopConfig, name: str) -> bool:
    """Whether the limit ``name`` of ``config`` is lower than that of ``earlier``; None is none."""
    now, before = getattr(config, name), getattr(earlier, name)
    return now is not None and (before is None or now < before)


@contextmanager
def started_run(
    config: LoopConfig, model: nn.Module, resume: bool, overwrite: bool, rank: int
) -> Iterator[Path | None]:
    """Make the run's folder, write its configuration and give the checkpoint to go on from, if any.

    Inside the ``with`` block no other process trains in the folder. To be entered last, after all that can
    refuse the settings; raises ValueError for a checkpoint that does not fit ``model``, a Lightning module,
    or the number of processes, and where another process has started in the folder. Overwriting removes what
    training wrote, see :meth:`models.runs.layout.RunLayout.outputs`. What other commands made of the earlier
    run stays: its ``codes/``, which `encode` refuses to mix with those of another model, samples and
    evaluations. A KeyboardInterrupt inside becomes a RunInterrupted.
    """
    layout = config.layout
    checkpoint = _checkpoint_to_resume(layout, model) if resume else None
    if rank > 0:
        yield checkpoint
        return
    try:
        layout.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(config, f"it cannot be made ({error.strerror})") from error
    with only_writer(layout.folder):
        if not resume and not overwrite and layout.config.is_file():  # started since check_folder looked
            raise ValueError(
                f"{layout.folder} holds the run of another process; choose another name (--name)"
            )
        if overwrite:
            for path in layout.outputs(config.command):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        config.save(layout.config)
        try:
            yield checkpoint
        except KeyboardInterrupt as interruption:
            if type(interruption) is not KeyboardInterrupt:  # TrainingStopped says more
                raise
            raise RunInterrupted from interruption


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint of a run. Raises ValueError if the file is damaged or of something else."""
    remedy = "train again with --overwrite, or choose another name (--name)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint can make unpickling raise anything
        raise ValueError(f"{path} is no checkpoint that can be read; {remedy}") from error
    missing = [name for name in _CHECKPOINT_ENTRIES if not isinstance(state, dict) or name not in state]
    if missing:
        raise ValueError(f"{path} is no checkpoint of a run, as it lacks {missing[0]}; {remedy}")
    return dict(state)


def _earlier(config: LoopConfig, stored: Path) -> LoopConfig:
    """The settings of the run in the folder. ValueError unless it is of the kind of ``config``."""
    values = read_yaml(stored)
    required = {"name", "runs", "codes" if isinstance(config, PriorConfig) else "model"}
    try:
        earlier = type(config).from_mapping(config.completed(values), str(stored))
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


def _checkpoint_to_resume(layout: RunLayout, model: nn.Module) -> Path | None:
    """The last checkpoint; the best one where the last is damaged or gone; None where there is neither.

    ValueError if no checkpoint can be read, or for one that does not fit ``model``.
    """
    checkpoints = [path for path in (layout.last, layout.best) if path.is_file()]
    for path in checkpoints:
        try:
            state = read_checkpoint(path)
        except ValueError:
            if path == checkpoints[-1]:
                raise
            continue
        _check_fits(state, model, path)
        _check_processes(state, path)
        if path != layout.last:
            reason = "cannot be read" if layout.last.is_file() else "is missing"
            print(f"{layout.last} {reason}; going on from {path}", file=sys.stderr)
        return path
    return None


def _check_has_checkpoint(config: LoopConfig) -> None:
    """ValueError if the run was trained to its end, but its checkpoints are gone: it would start over."""
    layout = config.layout
    if layout.last.is_file() or layout.best.is_file():
        return
    traces = [path.name for path in (layout.model, *layout.levels) if path.exists()]
    if traces:
        raise ValueError(
            f"{layout.folder} has {traces[0]}, but no {layout.last.relative_to(layout.folder)} to go on "
            f"from; train again with --overwrite, or choose another name (--name)"
        )


def _check_fits(checkpoint: dict[str, Any], model: nn.Module, path: Path) -> None:
    """ValueError naming the first weight whose shape in the checkpoint is not that in ``model``."""
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    built = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in saved | built:
        if saved.get(name) != built.get(name):
            raise ValueError(
                f"{path} is of another model: {name} has shape {saved.get(name, 'none')} in the checkpoint "
                f"and {built.get(name, 'none')} in the model; train again with --overwrite"
            )


def _check_processes(checkpoint: dict[str, Any], path: Path) -> None:
    """ValueError if another number of processes trains now, between which images are shared otherwise.

    Checkpoints of before this was stored say nothing.
    """
    now = int(os.environ.get("WORLD_SIZE", "1"))
    stored = checkpoint["loader"].get("world", now)
    if stored != now:
        raise ValueError(
            f"{path} was written by {stored} processes, now {now} start; go on with as many "
            f"(torchrun --nproc-per-node {stored}), or train again with --overwrite"
        )
