"""Training the priors of a code store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.codes.store import DESCRIPTION_FILE, CodeDescription, CodeStore
from models.data.loader import BatchLoader
from models.evaluation.pictures import save_curves
from models.runs.config import PriorConfig
from models.runs.history import read_history
from models.runs.reproducible import start_reproducibly
from models.runs.start import prepare_folder
from models.training.loop import (
    check_start,
    fit,
    load_best,
    make_trainer,
    processes,
    training_loader,
)
from models.training.modules import PriorModule

if TYPE_CHECKING:
    from models.priors.base import AutoregressivePrior


def train_prior(
    config: PriorConfig, store: CodeStore | None = None, *, resume: bool = False, overwrite: bool = False
) -> list[AutoregressivePrior]:
    """Train one prior a level and return those with the lowest validation loss, top first, in eval mode.

    ``RUNS/NAME`` then holds what :func:`models.training.autoencoder.train` leaves, with ``level0/`` (top),
    ``level1/``, ... for ``from_pretrained``, and ``codes.json``, the description of the codes. Raises
    DataError or ValueError before training starts.
    """
    check_start(config, resume, overwrite)
    store = CodeStore(config.codes) if store is None else store
    if resume:
        _check_codes(config, store.description)
    start_reproducibly(config.seed)
    priors = build_priors(config, store.description)
    rank, world, _ = processes()
    loader = training_loader(store.split("train"), config, world, rank)
    validation = BatchLoader(store.split("validation"), config.batch_size, rank=rank, world=world)
    module = PriorModule(priors, config, loader)
    trainer = make_trainer(config, module, [])
    checkpoint = prepare_folder(config, module, resume, overwrite)
    if rank == 0:  # before training, so that an interrupted run knows its codes
        store.description.save(config.folder)
    load_best(module, fit(trainer, module, validation, checkpoint))
    priors = [prior.cpu().eval() for prior in priors]
    if rank == 0:
        for level, prior in enumerate(priors):
            prior.save_pretrained(config.folder / f"level{level}")
        history = read_history(config.folder)
        lines = {name.replace("/", " "): series for name, series in history.items() if "nats" in name}
        save_curves(config.folder / "curves.png", {"priors": lines}, y_labels={"priors": "nats a code"})
    return priors


def _check_codes(config: PriorConfig, description: CodeDescription) -> None:
    """ValueError if the run to go on with has seen other codes than ``description`` says."""
    if not (config.folder / DESCRIPTION_FILE).is_file():
        return  # stopped before its first step
    found = CodeDescription.load(config.folder).difference(description)
    if found:
        name, there, now = found
        raise ValueError(
            f"the prior in {config.folder} was trained on codes with {name} {there!r}, now it is {now!r}; "
            f"train it again (--overwrite) or choose another name (--name)"
        )


def build_priors(config: PriorConfig, description: CodeDescription) -> list[AutoregressivePrior]:
    """Priors of every level, top first; each lower one is conditioned on the level above it."""
    from models import PixelCNN, PixelSNAIL, TransformerPrior

    if config.prior not in ("transformer", "pixelcnn", "pixelsnail"):
        raise ValueError(f"prior must be transformer, pixelcnn or pixelsnail, got {config.prior!r}")
    if config.conditional and not description.class_names:
        raise ValueError(
            f"conditional is true, but the codes of {description.data} in {config.codes} have no labels; "
            f"leave it out (--no-conditional), or encode labelled images"
        )
    classes = len(description.class_names) if config.conditional is not False else 0
    levels = len(description.shapes)
    attention, res_channels, out_res_blocks = (
        _of_levels(config, name, levels) for name in ("attention", "res_channels", "out_res_blocks")
    )
    priors: list[AutoregressivePrior] = []
    for level, shape in enumerate(description.shapes):
        size = description.codebook_size
        conditions: dict[str, Any] = {
            "num_classes": classes or None,
            "upper_codebook_size": size if level else None,
        }
        if config.prior == "transformer":
            prior: AutoregressivePrior = TransformerPrior(
                size, config.width, shape=shape, layers=config.layers, heads=config.heads,
                dropout=config.dropout, **conditions)  # fmt: skip
        elif config.prior == "pixelcnn":
            prior = PixelCNN(
                size, channels=config.width, layers=config.layers, kernel_size=config.kernel_size,
                dropout=config.dropout, upper_blocks=config.upper_blocks, **conditions)  # fmt: skip
        else:
            prior = PixelSNAIL(
                size, channels=config.width, kernel_size=config.kernel_size, blocks=config.layers,
                res_blocks=config.res_blocks, res_channels=res_channels[level] or None,
                attention=attention[level], heads=config.heads, out_res_blocks=out_res_blocks[level],
                dropout=config.dropout, upper_blocks=config.upper_blocks,
                upper_channels=config.upper_channels, **conditions)  # fmt: skip
        priors.append(prior)
    return priors


def _of_levels(config: PriorConfig, name: str, levels: int) -> tuple[Any, ...]:
    """A setting for each level, from one for all or one for each."""
    values: tuple[Any, ...] = getattr(config, name)
    if len(values) not in (1, levels):
        raise ValueError(f"{name} must have one value, or one for each of {levels} levels, got {len(values)}")
    return values * levels if len(values) == 1 else values
