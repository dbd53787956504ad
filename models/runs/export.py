"""Models from the checkpoints of a run, finished or not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from models.autoencoders.base import Autoencoder
from models.codes.description import CodeDescription
from models.data import load_data
from models.pretrained import CONFIG_FILE, WEIGHTS_FILE, Pretrained, load_weights, weights_hash
from models.priors.base import AutoregressivePrior
from models.runs.build import build_model, build_priors, trained_levels
from models.runs.config import PriorConfig, TrainConfig
from models.runs.layout import RunLayout
from models.runs.start import read_checkpoint
from models.settings import read_yaml
from vq_kernels.checks import check_choice


def checkpoint_models(folder: str | Path, checkpoint: str = "best") -> list[Pretrained]:
    """The model of a `train` run, or the prior of each level of a `train-prior` run, in eval mode.

    checkpoint: ``"best"``, of the lowest validation loss, or ``"last"``. Raises FileNotFoundError where the
    run has no such checkpoint, and ValueError for one that cannot be read.
    """
    check_choice(("best", "last"), checkpoint=checkpoint)
    layout = RunLayout(Path(folder))
    file = {"best": layout.best, "last": layout.last}[checkpoint]
    if not layout.config.is_file():
        raise FileNotFoundError(f"{layout.config} does not exist; give the folder of a run")
    if not file.is_file():
        raise FileNotFoundError(not_so_far(file))
    state = read_checkpoint(file)["state_dict"]
    models = _untrained(layout)
    is_prior = "codes" in read_yaml(layout.config)
    for number, model in enumerate(models):
        prefix = f"model.{number}." if is_prior else "model."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        load_weights(model, own, str(file))
        model.eval()
    return models


def usable_model(folder: str | Path, *, write: bool = True) -> Path:
    """The folder to load a model from, given that of its run or itself.

    An unfinished run has none: its best checkpoint is then written as one, into ``checkpoints/best``, unless
    ``write`` is false. What does not exist is returned as it is. FileNotFoundError, if it is to be written,
    for a run that has no checkpoint yet.
    """
    layout = RunLayout(Path(folder))
    has_weights = any((place / WEIGHTS_FILE).is_file() for place in (layout.model, layout.folder))
    if write and layout.config.is_file() and not has_weights and not layout.best.is_file():
        raise FileNotFoundError(not_so_far(layout.best))
    if (layout.model / WEIGHTS_FILE).is_file():
        return layout.model
    if (layout.folder / WEIGHTS_FILE).is_file() or not (layout.best.is_file() and layout.config.is_file()):
        return layout.folder if not layout.model.is_dir() else layout.model
    return _export_best(layout, [layout.best_models], write)[0]


def usable_levels(folder: str | Path, *, write: bool = True) -> list[Path]:
    """The folders of the priors of a `train-prior` run, top level first, as :func:`usable_model` has it."""
    layout = RunLayout(Path(folder))
    if not (layout.best.is_file() and layout.config.is_file() and layout.description.is_file()):
        return layout.levels
    trained = trained_levels(PriorConfig.of_run(layout.config), CodeDescription.load(layout.folder))
    if all((layout.level(number) / WEIGHTS_FILE).is_file() for number in trained):
        return layout.levels
    above = [level for level in layout.levels if level not in map(layout.level, trained)]
    return above + _export_best(layout, [layout.best_models / f"level{number}" for number in trained], write)


def hashes_now(run: str | Path) -> list[str]:
    """Hashes of the weights that `evaluate` and `sample` would take of a run, top level first.

    Writes nothing: those of a checkpoint that is not a model yet, or has changed since, are missing.
    """
    layout = RunLayout(Path(run))
    is_prior = layout.description.is_file()
    folders = usable_levels(run, write=False) if is_prior else [usable_model(run, write=False)]
    return [
        weights_hash(folder)
        for folder in folders
        if (folder / WEIGHTS_FILE).is_file()
        and (layout.checkpoints not in folder.parents or _is_exported(layout, folder))
    ]


def say_if_unfinished(model: Path) -> None:
    """Say so if ``model``, as the functions above return it, is a checkpoint of an unfinished run."""
    for folder in (model, model.parent):
        if folder.parent.name == "checkpoints":
            run = folder.parent.parent
            print(f"{run} is not finished: its best checkpoint so far is taken", file=sys.stderr)


def not_so_far(checkpoint: Path) -> str:
    """The message of a run that was stopped before this checkpoint."""
    return f"{checkpoint} does not exist: the run has not come that far; go on with --resume"


def _export_best(layout: RunLayout, targets: list[Path], write: bool) -> list[Path]:
    """Write the models of the best checkpoint into ``targets``, unless they are there already."""
    if write and not all(_is_exported(layout, target) for target in targets):
        for model, target in zip(checkpoint_models(layout.folder), targets, strict=True):
            model.save_pretrained(target)
    return targets


def _is_exported(layout: RunLayout, target: Path) -> bool:
    """Whether ``target`` holds the model of the best checkpoint."""
    file = target / WEIGHTS_FILE
    return file.is_file() and file.stat().st_mtime_ns >= layout.best.stat().st_mtime_ns


def _untrained(layout: RunLayout) -> list[Pretrained]:
    """The models that the run trains, with other weights."""
    if "codes" in read_yaml(layout.config):
        settings, description = PriorConfig.of_run(layout.config), CodeDescription.load(layout.folder)
        levels = map(layout.level, trained_levels(settings, description))
        given = [level for level in levels if (level / CONFIG_FILE).is_file()]
        if given:  # as of priors that were given in Python
            return [AutoregressivePrior.from_description(level) for level in given]
        priors: list[Any] = list(build_priors(settings, description))
        return priors
    config = TrainConfig.of_run(layout.config)
    if (layout.model / CONFIG_FILE).is_file():  # as of a model that was given in Python
        return [Autoencoder.from_description(layout.model)]
    return [build_model(config, load_data(config, stream=True))]
