"""Settings of a run: plain dataclasses, read from YAML, overridden by flags, written beside the results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from models.autoencoders.pixel_decoder import DecoderSettings
from models.autoencoders.quantizer import WITH_CODES, QuantizerSettings
from models.autoencoders.terms import TermSettings
from models.data.augment import AugmentSettings
from models.data.settings import DataConfig, check_data
from models.runs.layout import RunLayout
from models.runs.levels import LevelSettings
from models.runs.rules import BEFORE, PLACE_SETTINGS, RESUMABLE_SETTINGS, SELDOM_SET, check_name
from models.settings import (
    closest,
    convert_value,
    format_value,
    read_yaml,
    setting,
    setting_types,
    write_yaml,
)
from vq_kernels.checks import check_choice, check_integer, check_number

LOGGERS = ("csv", "tensorboard", "wandb")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_SNAIL = ("pixelsnail",)
_MAPS = ("pixelsnail", "pixelcnn")
PER_LEVEL = "one for all levels, or one for each, top first"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training loop needs; the results go to the folder ``RUNS/NAME``."""

    command: ClassVar[str] = ""  # that trains with these settings
    settings_title: ClassVar[str] = "run and training"

    name: str = setting("run", "name of the run; results go to RUNS/NAME")
    runs: str = setting("runs", "folder of all runs")
    epochs: int = setting(20, "passes over the training split")
    steps: int | None = setting(None, "stop after this many optimizer steps, whatever the epoch")
    minutes: float | None = setting(None, "stop after so many minutes of training; the schedule ends there")
    batch_size: int = setting(64, "images in a batch, on each process")
    lr: float = setting(3e-4, "learning rate of Adam")
    weight_decay: float = setting(0.0, "of matrices and convolutions at each step, as AdamW has it")
    schedule: str = setting("constant", "learning rate: constant, or cosine (down to zero at the end)")
    warmup: int = setting(0, "steps over which the learning rate rises from zero")
    clip: float | None = setting(None, "clip the norm of the gradient to this")
    accumulate: int = setting(1, "batches whose gradients are averaged into one step")
    precision: str = setting("32-true", "32-true, bf16-mixed or 16-mixed")
    compile: bool = setting(False, "compile the model with torch.compile, which takes minutes at the start")
    devices: int | None = setting(None, "devices on each machine; by default as torchrun says, else 1")
    accelerator: str = setting("auto", "auto, cpu or gpu")
    deterministic: bool = setting(True, "on a GPU: equal seeds give equal runs, at some speed")
    patience: int | None = setting(None, "stop after this many epochs without a better validation loss")
    seed: int = setting(0, "of weights, order of images and noise; equal seeds give equal runs")
    log_every: int = setting(10, "steps between two rows of the logs")
    checkpoint_every: int = setting(200, "steps between two saves of the last checkpoint")
    progress: bool = setting(True, "show progress bars")
    logger: tuple[str, ...] = setting(
        ("csv", "tensorboard"), "csv, and tensorboard, wandb (offline, if installed) or both"
    )
    requeue: bool = setting(False, "when a signal stops a SLURM job, put it back into the queue")

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; accepted: a finite number")
        self._check_integers(1, "epochs", "steps", "batch_size", "accumulate", "devices", "patience")
        self._check_integers(1, "log_every", "checkpoint_every")
        self._check_integers(0, "warmup", "seed")
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; accepted: an integer below 2**32")
        for logger in self.logger:
            check_choice(LOGGERS, logger=logger)
        if "csv" not in self.logger:
            logger = format_value(self.logger)
            raise ValueError(f"logger is {logger}; accepted: csv, from which figures are drawn, and others")
        check_choice(("constant", "cosine"), schedule=self.schedule)
        check_choice(PRECISIONS, precision=self.precision)
        check_choice(("auto", "cpu", "gpu"), accelerator=self.accelerator)
        if not 0 < self.lr <= 1e30:  # weights are float32
            raise ValueError(f"lr is {self.lr}; accepted: a number above 0, up to 1e30")
        check_number(weight_decay=self.weight_decay)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes}; accepted: a number above 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; accepted: a number above 0")

    def _check_integers(self, lowest: int, *names: str) -> None:
        """ValueError or TypeError unless the settings, and the entries of tuples, are at least ``lowest``.

        A setting that is None is not checked: it stands for another default.
        """
        for name in names:
            value = getattr(self, name)
            if value == ():
                raise ValueError(
                    f"{name} is empty; accepted: integers of at least {lowest}, with commas between"
                )
            for entry in value if isinstance(value, tuple) else (value,):
                if entry is not None:
                    check_integer(lowest, **{name: entry})

    @property
    def layout(self) -> RunLayout:
        """The names in the run's folder."""
        return RunLayout(self.folder)

    @property
    def folder(self) -> Path:
        """``RUNS/NAME``, the run's folder."""
        return Path(self.runs) / self.name

    def replace(self, **changes: Any) -> Self:
        """These settings with ``changes``, whose values have the settings' own types."""
        return dataclasses.replace(self, **changes)

    def with_values(self, values: Mapping[str, Any], source: str) -> Self:
        """These settings with ``values`` as YAML or flags give them. Raises as :meth:`from_mapping` does."""
        return self.replace(**self._converted(values, source))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> Self:
        """Settings from names and values as YAML or flags give them; the others take their defaults.

        Raises ValueError naming ``source``, the setting, and the nearest name or what is accepted.
        """
        return cls(**cls._converted(values, source))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Settings from a YAML file, or by name from ``models/configs``."""
        return cls.from_mapping(read_yaml(path), str(path))

    @classmethod
    def of_run(cls, path: str | Path) -> Self:
        """Settings from the ``config.yaml`` of a run, which an earlier version may have written."""
        return cls.from_mapping(cls.completed(read_yaml(path)), str(path))

    @classmethod
    def is_of_run(cls, values: Mapping[str, Any]) -> bool:
        """Whether ``values`` list all that there is to set, as the ``config.yaml`` of a run does."""
        return set(SELDOM_SET) <= set(values)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings in the ``config.yaml`` of a run with what earlier versions did without saying so."""
        types = setting_types(cls)
        return {name: value for name, value in BEFORE.items() if name in types} | dict(values)

    @classmethod
    def _converted(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        types = setting_types(cls)
        for name in values:
            if name not in types:
                for other in LoopConfig.__subclasses__():
                    if name in setting_types(other):
                        raise ValueError(
                            f"{source} is of a {other.command} run, not of a {cls.command} run: it sets "
                            f"{name}; accepted: folder, --name or --config of a {cls.command} run"
                        )
                raise ValueError(f"{source}: unknown setting {name!r}; {closest(str(name), types)}")
        return {name: convert_value(value, types[name], name, source) for name, value in values.items()}

    def difference(self, earlier: Self) -> tuple[str, Any, Any] | None:
        """The first setting that makes another run than ``earlier``, its value there and here, or None."""
        for name, before in vars(earlier).items():
            value = getattr(self, name)
            if name not in PLACE_SETTINGS and not (name == "codes" or value == before):
                return name, before, value
        return None

    def check_resumes(self, earlier: Self) -> None:
        """ValueError unless a run with the settings ``earlier`` can go on with these."""
        for name, before in vars(earlier).items():
            value = getattr(self, name)
            if name not in RESUMABLE_SETTINGS and value != before:
                raise ValueError(
                    f"{name} is {format_value(value)}, but the run in {self.folder} has "
                    f"{format_value(before)}, which --resume keeps; leave {name} out, or choose another name "
                    f"(--name) or --overwrite"
                )

    def save(self, path: Path) -> None:
        """Write all settings as YAML."""
        write_yaml(path, self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(QuantizerSettings, DecoderSettings, TermSettings, DataConfig, AugmentSettings, LoopConfig):
    """A VAE, VQ-VAE or VQ-VAE-2 and its data.

    ``TrainConfig(data="digits", downscale=2, embedding_dim=16)`` trains a VQ-VAE that stands for an image
    ``[1, 8, 8]`` by 4 x 4 codes of 16 numbers each.

    ``beta`` and ``likelihood`` that are None become those of the model when the settings are made: a VAE
    minimises the ELBO by default, the others squared error and commitment loss. ``replace(model=...)``
    keeps what they have become.
    """

    command: ClassVar[str] = "train"
    settings_title: ClassVar[str] = "model"

    model: str = setting("vqvae", "vqvae, vqvae2 or vae")
    hidden: int = setting(128, "channels of the convolutions", model=WITH_CODES)
    residual_layers: int = setting(2, "residual blocks on either side", model=WITH_CODES)
    residual_hidden: int = setting(32, "channels inside a residual block", model=WITH_CODES)
    downscale: int = setting(4, "vqvae: image size over code map size: 2, 4 or 8", model=("vqvae",))
    downscales: tuple[int, ...] = setting(
        (4, 2), "vqvae2: downscale of each level, bottom first", model=("vqvae2",)
    )
    beta: float | None = setting(
        None, "weight of the commitment loss, by default 0.25; vae: of the KL term, by default 1"
    )
    likelihood: str | None = setting(
        None, "mse, gaussian, logistic or categorical; by default gaussian for a vae, else mse"
    )
    latent_dim: int = setting(128, "vae: dimension of the latent", model=("vae",))
    init: str | None = setting(None, "run or model folder whose weights to start from")
    init_weights: str = setting(
        "torch",
        "torch, or sonnet: truncated normal weights and zero biases of convolutions",
        model=WITH_CODES,
    )
    kl_warmup: int = setting(
        0, "vae: steps over which the weight of the KL term rises from zero", model=("vae",)
    )
    channels_vae: tuple[int, ...] = setting(
        (32, 64, 128, 256), "vae: widths of the four convolutions", model=("vae",)
    )
    pictures_every: int = setting(1, "epochs between two pictures of reconstructions; 0 for none")

    def __post_init__(self) -> None:
        likelihood, beta = ("gaussian", 1.0) if self.model == "vae" else ("mse", 0.25)
        for name, value in (("likelihood", likelihood), ("beta", beta)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for others
        super().__post_init__()
        check_choice(("torch", "sonnet"), init_weights=self.init_weights)
        self._check_integers(2, "hidden")  # the first convolution has half as many
        self._check_integers(1, "residual_hidden", "downscale", "downscales", "latent_dim", "channels_vae")
        self._check_integers(1, "limit")
        check_data(self)
        self._check_integers(0, "residual_layers", "kl_warmup", "pictures_every")
        check_number(beta=self.beta)
        self.check_augment()
        self.check_terms(len(self.downscales))
        self.check_quantizer()
        self.check_decoder()


@dataclass(frozen=True, kw_only=True)
class PriorConfig(LevelSettings, LoopConfig):
    """Priors over the codes of a trained VQ-VAE or VQ-VAE-2, one for each level.

    ``PriorConfig(codes="runs/digits/codes", width=64)`` trains a Transformer on the codes that `encode`
    wrote there.
    """

    command: ClassVar[str] = "train-prior"
    settings_title: ClassVar[str] = "prior"

    name: str = setting("prior", "name of the run")
    codes: str = setting("", "folder of codes written by `encode`")
    prior: str = setting("transformer", "transformer, pixelcnn or pixelsnail")
    conditional: bool | None = setting(None, "condition on the labels; by default where the codes have them")
    width: int = setting(64, "channels of the network")
    layers: int = setting(3, "number of layers or blocks")
    heads: int = setting(4, "attention heads (transformer, pixelsnail)", prior=("transformer", "pixelsnail"))
    dropout: float = setting(0.1, "dropout probability")
    kernel_size: int = setting(5, "pixelsnail, pixelcnn: size of the convolutions, odd", prior=_MAPS)
    res_blocks: int = setting(4, "pixelsnail: residual blocks in each of its layers", prior=_SNAIL)
    res_channels: tuple[int, ...] = setting(
        (0,), "pixelsnail: inside residual blocks; 0 for width; " + PER_LEVEL, prior=_SNAIL
    )
    attention: tuple[bool, ...] = setting((True,), "pixelsnail: attend to all; " + PER_LEVEL, prior=_SNAIL)
    out_res_blocks: tuple[int, ...] = setting(
        (0,), "pixelsnail: blocks before the output; " + PER_LEVEL, prior=_SNAIL
    )
    upper_blocks: int = setting(
        3, "pixelsnail, pixelcnn: residual blocks that read the level above", prior=_MAPS
    )
    upper_channels: int | None = setting(
        None, "pixelsnail: channels of those blocks; by default width", prior=_SNAIL
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_levels()
        self._check_integers(1, "width", "layers", "heads", "res_blocks", "upper_blocks", "upper_channels")
        self._check_integers(0, "res_channels", "out_res_blocks")
        if not self.attention:
            raise ValueError("attention is empty; accepted: true or false for each level")
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; accepted: an odd integer of at least 3")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; accepted: a number from 0 to below 1")
