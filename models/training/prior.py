"""Training the priors of a code store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models.codes.description import CodeDescription
from models.codes.given import as_code_store
from models.codes.store import CodeStore
from models.codes.usage import SAMPLE, say_if_collapsed
from models.data.images import some_rows
from models.data.kinds import kind_of_settings
from models.data.loader import BatchLoader
from models.data.sources import GIVEN
from models.evaluation.pictures import save_curves
from models.files import write_whole
from models.priors.base import AutoregressivePrior
from models.runs.build import build_priors, trained_levels
from models.runs.config import PriorConfig
from models.runs.device import find_device
from models.runs.export import usable_levels
from models.runs.history import curves_of, read_history
from models.runs.open import load_pretrained
from models.runs.priors import check_codes_of
from models.runs.reproducible import seed_run
from models.runs.start import started_run
from models.training.loop import (
    check_start,
    fit,
    load_best,
    nothing_left,
    training_loader,
    trains_on_cpu,
)
from models.training.modules import PriorModule
from models.training.processes import processes
from models.training.rehearsal import Plan, StepTimer, rehearse

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


def train_prior(
    config: PriorConfig | None = None,
    codes: Any = None,
    *,
    prior: AutoregressivePrior | Sequence[AutoregressivePrior] | None = None,
    resume: bool | str = False,
    overwrite: bool = False,
) -> list[AutoregressivePrior]:
    """Train one prior a level and return those with the lowest validation loss, top first, in eval mode.

    Without ``codes`` and ``prior`` both are what ``config`` says. ``codes`` are a store, or in any form that
    :func:`models.codes.given.as_code_store` takes. ``prior`` is one of your own, or one for each level, top
    first: of a subclass of :class:`models.priors.base.AutoregressivePrior`, trained on from its weights.

    ``RUNS/NAME`` then holds what :func:`models.training.autoencoder.train` leaves, with ``level0/`` (top),
    ``level1/``, ... for ``from_pretrained``, and ``codes.json``, the description of the codes. Raises
    DataError or ValueError before training starts.
    """
    given = _given_priors(prior)
    store = as_code_store(codes, given) if codes is not None else None
    config = _with_given(PriorConfig() if config is None else config, store, given)
    resume = check_start(config, resume, overwrite)
    store = _checked(CodeStore(config.codes) if store is None else store)  # before an earlier run is removed
    levels = trained_levels(config, store.description)
    if given and len(given) != len(levels):
        raise ValueError(f"prior is of {len(given)} levels; accepted: one for each of {len(levels)}")
    for level, one in zip(levels, given, strict=False):
        if one.codebook_size < store.description.vocabulary(level):
            raise ValueError(
                f"prior of level {level} has codebook_size {one.codebook_size}; accepted: at least "
                f"{store.description.vocabulary(level)}, that of the codes"
            )
    if config.above is not None:
        _check_above(config.above, store.description)
        prior_levels_above(config.above, levels[0])
    if resume:
        _check_codes(config, store.description)
        folders = [config.layout.level(level) for level in levels]
        if nothing_left(config, folders):
            trained: list[Any] = [load_pretrained(folder) for folder in folders]
            return trained
    if processes().rank == 0:
        sample = store.train.batch(some_rows(len(store.train), SAMPLE))
        items = kind_of_settings(store.description.settings).items
        say_if_collapsed(sample, store.description.codebook_sizes, items)
    return _train(config, store, resume, overwrite, given)[0]


def _checked(codes: CodeStore) -> CodeStore:
    """The codes, of the weights that their model has now and all in range; DataError or ValueError."""
    check_codes_of(codes)
    codes.check_values()
    return codes


def plan_prior(config: PriorConfig, store: CodeStore | None = None) -> Plan:
    """What :func:`train_prior` with ``config`` would take, from a few steps that leave nothing behind.

    Raises as :func:`train_prior` does before training starts.
    """
    check_start(config, False, True)
    codes = _checked(CodeStore(config.codes) if store is None else store)

    def run(few: PriorConfig, timer: StepTimer) -> PriorModule:
        return _train(few, codes, False, False, [], [timer])[1]

    batches = -(-len(codes.validation) // config.batch_size)
    return rehearse(config, run, batches, 0, 0.0)


def _given_priors(prior: Any) -> list[AutoregressivePrior]:
    """The priors that were given, top level first; none to build them. TypeError."""
    if prior is None:
        return []
    priors = list(prior) if isinstance(prior, list | tuple) else [prior]
    for one in priors:
        if not isinstance(one, AutoregressivePrior):
            raise TypeError(
                f"prior is a {type(one).__name__}; accepted: a subclass of "
                f"models.priors.base.AutoregressivePrior"
            )
    return priors


def _with_given(
    config: PriorConfig, store: CodeStore | None, priors: Sequence[AutoregressivePrior]
) -> PriorConfig:
    """The settings with what was given in Python in place of what they would name."""
    if store is not None and store.description.data == GIVEN:
        config = config.replace(codes=GIVEN)
    kinds = {f"{type(prior).__module__}.{type(prior).__qualname__}" for prior in priors}
    return config.replace(prior=",".join(sorted(kinds))) if kinds else config


def _train(
    config: PriorConfig,
    store: CodeStore,
    resume: bool,
    overwrite: bool,
    given: Sequence[AutoregressivePrior],
    callbacks: Sequence[Callback] = (),
) -> tuple[list[AutoregressivePrior], PriorModule]:
    """The trained priors, top level first, and the module that held them in training."""
    seed_run(config.seed)
    priors = list(given) or build_priors(config, store.description)
    rank, world, _ = processes()
    loader = training_loader(store.split("train"), config, world, rank)
    validation = BatchLoader(store.split("validation"), config.batch_size, rank=rank, world=world)
    levels = trained_levels(config, store.description)
    module = PriorModule(priors, config, loader, levels)
    with started_run(config, module, resume, overwrite, rank) as checkpoint:
        if rank == 0:  # before training, so that an interrupted run knows its codes
            store.description.save(config.folder)
            for level, prior in zip(levels, given, strict=False):
                prior.save_description(config.layout.level(level))
            for source in [] if config.above is None else prior_levels_above(config.above, levels[0]):
                shutil.copytree(source, config.layout.folder / source.name, dirs_exist_ok=True)
        load_best(module, fit(config, module, validation, list(callbacks), checkpoint))
        priors = [prior.cpu().eval() for prior in priors]
        if rank == 0:
            for level, prior in zip(levels, priors, strict=True):
                prior.save_pretrained(config.layout.level(level))
            nats = _measure(module, store)
            write_whole(config.layout.nats, json.dumps(nats, indent=2) + "\n")
            if config.progress:
                print(_describe(nats), flush=True)
            history = read_history(config.folder)
            settings = f"seed {config.seed}, batch size {config.batch_size}"
            save_curves(
                config.layout.curves,
                {"negative log-likelihood": curves_of(history, "nats_per_code")},
                y_labels={"negative log-likelihood": "nats a code"},
                caption=f"{store.description.data}, {config.prior}; {settings}",
            )
    return priors, module


@torch.no_grad()
def _measure(module: PriorModule, store: CodeStore) -> dict[str, dict[str, float]]:
    """The nats a code of every trained level: of as many training images as there are held-out ones, of
    these, and of these without their labels where the priors know what that means.

    They are computed where the priors were trained, which are on the CPU before and afterwards.
    """
    module.to("cpu" if trains_on_cpu(module.config) else find_device("gpu"))
    held_out = store.validation
    rows = {
        "training": (store.train, some_rows(len(store.train), len(held_out))),
        "held out": (held_out, torch.arange(len(held_out))),
    }
    if all(prior.null_label is not None for prior in module.model):
        rows["held out, without labels"] = rows["held out"]
    nats: dict[str, dict[str, float]] = {}
    for name, (split, chosen) in rows.items():
        totals: dict[str, float] = {}
        for some in chosen.split(module.config.batch_size):
            codes = tuple(level.to(module.device) for level in split.batch(some))
            batch = (codes, split.batch_labels(some).to(module.device))
            for key, value in module.losses(batch, float(name.endswith("labels"))).items():
                totals[key] = totals.get(key, 0.0) + float(value) * len(some) / len(chosen)
        nats[name] = totals
    module.cpu()
    return nats


def _describe(nats: dict[str, dict[str, float]]) -> str:
    """One line a level."""
    keys = list(next(iter(nats.values())))
    return "\n".join(
        f"{key}: " + ", ".join(f"{name} {values[key]:.3f}" for name, values in nats.items()) for key in keys
    )


def _check_above(run: str, description: CodeDescription) -> None:
    """ValueError unless ``run`` trained priors over codes of the same weights as ``description`` says."""
    above = CodeDescription.load(Path(run))
    if (above.weights, above.shapes) != (description.weights, description.shapes):
        raise ValueError(
            f"above is {run}, whose priors are over codes of {above.model}; accepted: a run over codes of "
            f"the same model, {description.model}"
        )


def prior_levels_above(run: str, level: int) -> list[Path]:
    """The folders of the priors of ``run`` above ``level``; FileNotFoundError if one is missing."""
    folders = {folder.name: folder for folder in usable_levels(run)}
    for number in range(level):
        if f"level{number}" not in folders:
            raise FileNotFoundError(f"above is {run}, which has no prior of level {number}; train it first")
    return [folders[f"level{number}"] for number in range(level)]


def _check_codes(config: PriorConfig, description: CodeDescription) -> None:
    """ValueError if the run to go on with has seen other codes than ``description`` says."""
    if not config.layout.description.is_file():
        return  # stopped before its first step
    difference = CodeDescription.load(config.folder).difference(description)
    if difference:
        name, stored, current = difference
        raise ValueError(
            f"the prior in {config.folder} was trained on codes with {name} {stored!r}, now it is "
            f"{current!r}; train it again (--overwrite) or choose another name (--name)"
        )
