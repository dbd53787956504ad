"""Opening what a run left in its folder: its settings, its model, its data and its priors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.codes.description import CodeDescription
from models.pretrained import Pretrained, load_weights
from models.runs.config import TrainConfig
from models.runs.data import data_of_run
from models.runs.device import find_device
from models.runs.export import not_so_far, say_if_unfinished, usable_levels, usable_model
from models.runs.layout import RunLayout

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder
    from models.data import ImageData
    from models.priors.base import AutoregressivePrior


def load_pretrained(directory: str | Path, device: str = "cpu", *, allow_import: bool = False) -> Pretrained:
    """Build whichever model ``save_pretrained`` wrote into ``directory``, in eval mode.

    device: as torch names it, or ``auto``. allow_import: see :meth:`Pretrained.from_pretrained`. Raises
    FileNotFoundError or ValueError where there is no such model, and ValueError for a device that cannot
    be used.
    """
    # A class that is not imported is not among the subclasses that from_pretrained looks through.
    import models.autoencoders.vae
    import models.autoencoders.vqvae
    import models.autoencoders.vqvae2
    import models.priors  # noqa: F401

    return Pretrained.from_pretrained(directory, find_device(device), allow_import=allow_import)


def start_from(model: Autoencoder, source: str | Path) -> None:
    """Give ``model`` the weights of a run or model folder ``source``, to be trained further on other data.

    A fixed variance stays that of ``model``: what it was calibrated to belongs to the old weights. Raises
    FileNotFoundError or ValueError where there is no such model, and ValueError naming every weight that one
    of the two lacks, or has in another shape.
    """
    folder = usable_model(source)
    say_if_unfinished(folder)
    state = load_pretrained(folder).state_dict()
    likelihood = {name: value for name, value in model.state_dict().items() if name.startswith("likelihood.")}
    if "likelihood.calibrated" in likelihood:
        state |= likelihood
    load_weights(model, state, f"init {source}")


def read_run_config(folder: str | Path) -> TrainConfig:
    """The settings of the trained run in ``folder``; FileNotFoundError where there is none."""
    stored = RunLayout(Path(folder)).config
    if not stored.is_file():
        raise FileNotFoundError(f"{stored} does not exist; give the folder of a trained run")
    return TrainConfig.of_run(stored)


def open_run(
    folder: str | Path, config: TrainConfig | None = None, device: str = "cpu", progress: bool = False
) -> tuple[Autoencoder, ImageData]:
    """The model of the run in ``folder``, and the data for a single pass.

    config: says which data; by default the run's own settings do. device: see :func:`load_pretrained`.
    progress: show a bar while images are read. If the run's data have changed, standard error says so.
    Raises FileNotFoundError or ValueError, a DataError where the data cannot be used.
    """
    from models.data import load_data

    stored = read_run_config(folder)
    config = stored if config is None else config
    source = usable_model(folder)
    say_if_unfinished(source)
    model: Any = load_pretrained(source, device)
    data = load_data(config, stream=True, progress=progress)
    return model, data_of_run(RunLayout(Path(folder)), data, config, stored)


def prior_levels(folder: str | Path) -> list[Path]:
    """The folders of the priors of a `train-prior` run, top level first.

    FileNotFoundError without any, and where those of one level alone were trained and the others are missing.
    """
    levels = usable_levels(folder)
    layout = RunLayout(Path(folder))
    if not levels and layout.config.is_file() and layout.description.is_file():
        raise FileNotFoundError(not_so_far(layout.best))
    if not levels:
        raise FileNotFoundError(f"{folder} holds no priors; train them with `python -m models train-prior`")
    names = [level.name for level in levels]
    count = len(CodeDescription.load(layout.folder).shapes) if layout.description.is_file() else len(levels)
    for number in range(count):
        if f"level{number}" not in names:
            raise FileNotFoundError(
                f"{folder} holds no prior of level {number}; train it (--level {number}) above or below this "
                f"one (--above RUN)"
            )
    return levels


def open_priors(folder: str | Path, device: str = "cpu") -> list[AutoregressivePrior]:
    """The priors of a `train-prior` run, top level first, in eval mode."""
    levels = prior_levels(folder)
    say_if_unfinished(levels[-1])
    priors: list[Any] = [load_pretrained(level, device) for level in levels]
    return priors
