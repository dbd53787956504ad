"""A run that is there already, goes on, or is trained: whichever it takes to have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.runs.config import TrainConfig
from models.runs.data import data_of_run
from models.runs.history import Series, read_history
from models.runs.loop import LoopConfig
from models.runs.open import load_pretrained
from models.runs.rules import made_with_other
from models.training import autoencoder
from models.training.loop import check_start

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder
    from models.data import ImageData


@dataclass(frozen=True)
class TrainedRun:
    """A trained autoencoder with its settings and logged values."""

    config: TrainConfig
    model: Autoencoder
    history: dict[str, Series]


def trained_run(
    config: TrainConfig,
    data: ImageData,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    say: Callable[[str], object] = print,
) -> TrainedRun:
    """The run of ``config``: loaded where it is finished, gone on with where it was interrupted, or trained.

    overwrite: replace one of other settings, which is a ValueError otherwise. say: is told what is trained.
    """
    is_same = is_same_run(config, overwrite)
    if is_same and config.layout.is_finished([config.layout.model]):
        model: Any = load_pretrained(config.layout.model, device)
        data_of_run(config.layout, data, config, config)  # says if they have changed
    else:
        say(f"training {config.name}")
        model = autoencoder.train(config, data, **how_to_start(config, is_same)).to(device)
    return TrainedRun(config, model, read_history(config.folder))


def check_run(config: TrainConfig, data: ImageData, *, overwrite: bool = False) -> Autoencoder:
    """The model of ``config`` before training, after all that :func:`trained_run` would refuse at its start.

    Writes nothing. ValueError, or FileNotFoundError for weights to start from that are not there.
    """
    is_same = is_same_run(config, overwrite)
    how = how_to_start(config, is_same)
    if not (is_same and config.layout.is_finished([config.layout.model])):
        check_start(config, how.get("resume", False), how.get("overwrite", False))
    return autoencoder.untrained(config, data, init="resume" not in how)


def is_same_run(config: LoopConfig, overwrite: bool) -> bool:
    """Whether a run with these settings is there; ValueError for one of others, if it may not go."""
    stored = config.layout.config
    if not stored.is_file():
        return False
    difference = config.difference(type(config).of_run(stored))
    if difference is not None and not overwrite:
        raise ValueError(made_with_other(config.folder, *difference))
    return difference is None


def how_to_start(config: LoopConfig, is_same: bool) -> dict[str, Any]:
    """How to train: an interrupted run of the same settings goes on, any other one is replaced."""
    return {"resume": True} if is_same and config.layout.last.is_file() else {"overwrite": True}
