"""Training the priors of a code store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.codes.description import CodeDescription
from models.codes.store import CodeStore
from models.codes.usage import SAMPLE, say_if_collapsed
from models.data.images import some_rows
from models.data.loader import BatchLoader
from models.evaluation.pictures import save_curves
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

if TYPE_CHECKING:
    from models.priors.base import AutoregressivePrior


def train_prior(
    config: PriorConfig,
    store: CodeStore | None = None,
    *,
    resume: bool | str = False,
    overwrite: bool = False,
) -> list[AutoregressivePrior]:
    """Train one prior a level and return those with the lowest validation loss, top first, in eval mode.

    ``RUNS/NAME`` then holds what :func:`models.training.autoencoder.train` leaves, with ``level0/`` (top),
    ``level1/``, ... for ``from_pretrained``, and ``codes.json``, the description of the codes. Raises
    DataError or ValueError before training starts.
    """
    resume = check_start(config, resume, overwrite)
    store = CodeStore(config.codes) if store is None else store
    if resume:
        _check_codes(config, store.description)
    seed_run(config.seed)
    priors = build_priors(config, store.description)
    if processes().rank == 0:
        sample = store.train.batch(some_rows(len(store.train), SAMPLE))
        say_if_collapsed(sample, store.description.codebook_sizes)
    rank, world, _ = processes()
    loader = training_loader(store.split("train"), config, world, rank)
    validation = BatchLoader(store.split("validation"), config.batch_size, rank=rank, world=world)
    module = PriorModule(priors, config, loader)
    with started_run(config, module, resume, overwrite, rank) as checkpoint:
        if rank == 0:  # before training, so that an interrupted run knows its codes
            store.description.save(config.folder)
        load_best(module, fit(config, module, validation, [], checkpoint))
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
    return priors


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
