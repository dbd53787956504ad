"""Training the priors of a code store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.codes.description import CodeDescription
from models.codes.given import as_code_store
from models.codes.store import CodeStore
from models.codes.usage import SAMPLE, say_if_collapsed
from models.data.images import some_rows
from models.data.kinds import kind_of_settings
from models.data.loader import BatchLoader
from models.data.sources import GIVEN
from models.evaluation.pictures import save_curves
from models.priors.base import AutoregressivePrior
from models.runs.build import build_priors
from models.runs.config import PriorConfig
from models.runs.history import curves_of, read_history
from models.runs.reproducible import seed_run
from models.runs.start import started_run
from models.training.loop import (
    check_start,
    fit,
    load_best,
    training_loader,
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
    store = CodeStore(config.codes) if store is None else store
    if given and len(given) != len(store.description.shapes):
        raise ValueError(
            f"prior is of {len(given)} levels; accepted: one for each of {len(store.description.shapes)}"
        )
    if resume:
        _check_codes(config, store.description)
    if processes().rank == 0:
        sample = store.train.batch(some_rows(len(store.train), SAMPLE))
        items = kind_of_settings(store.description.settings).items
        say_if_collapsed(sample, store.description.codebook_sizes, items)
    return _train(config, store, resume, overwrite, given)[0]


def plan_prior(config: PriorConfig, store: CodeStore | None = None) -> Plan:
    """What :func:`train_prior` with ``config`` would take, from a few steps that leave nothing behind.

    Raises as :func:`train_prior` does before training starts.
    """
    check_start(config, False, True)
    codes = CodeStore(config.codes) if store is None else store

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
    module = PriorModule(priors, config, loader)
    with started_run(config, module, resume, overwrite, rank) as checkpoint:
        if rank == 0:  # before training, so that an interrupted run knows its codes
            store.description.save(config.folder)
            for level, prior in enumerate(given):
                prior.save_description(config.layout.level(level))
        load_best(module, fit(config, module, validation, list(callbacks), checkpoint))
        priors = [prior.cpu().eval() for prior in priors]
        if rank == 0:
            for level, prior in enumerate(priors):
                prior.save_pretrained(config.layout.level(level))
            history = read_history(config.folder)
            settings = f"seed {config.seed}, batch size {config.batch_size}"
            save_curves(
                config.layout.curves,
                {"negative log-likelihood": curves_of(history, "nats_per_code")},
                y_labels={"negative log-likelihood": "nats a code"},
                caption=f"{store.description.data}, {config.prior}; {settings}",
            )
    return priors, module


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
