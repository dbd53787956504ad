"""Settings of a run: plain dataclasses, read from YAML, overridden by flags, written beside the results."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from models.data.settings import DataConfig, option

CONFIG_FOLDER = Path(__file__).parents[1] / "configs"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
PER_LEVEL = "one for all levels, or one for each, top first"
# A resumed run may change these. The others decide the model, its data and their order, or come back with
# the checkpoint, as the learning rate does.
MAY_CHANGE = (
    *("name", "runs", "epochs", "steps", "patience", "schedule", "warmup", "clip", "precision", "devices"),
    *("accelerator", "deterministic", "log_every", "checkpoint_every", "progress", "pictures_every"),
    *("cache_gb", "cache_dir"),
)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training loop needs."""

    command: ClassVar[str] = ""  # that trains with these settings

    name: str = option("run", "name of the run; results go to RUNS/NAME")
    runs: str = option("runs", "folder of all runs")
    epochs: int = option(20, "passes over the training split")
    steps: int | None = option(None, "stop after this many optimizer steps, whatever the epoch")
    batch_size: int = option(64, "images in a batch, on each process")
    lr: float = option(3e-4, "learning rate of Adam")
    schedule: str = option("constant", "learning rate: constant, or cosine (down to zero at the end)")
    warmup: int = option(0, "steps over which the learning rate rises from zero")
    clip: float | None = option(None, "clip the norm of the gradient to this")
    accumulate: int = option(1, "batches whose gradients are summed into one step")
    precision: str = option("32-true", "32-true, bf16-mixed or 16-mixed")
    devices: int | None = option(None, "devices on each machine; by default as torchrun says, else 1")
    accelerator: str = option("auto", "auto, cpu or gpu")
    deterministic: bool = option(True, "on a GPU: equal seeds give equal runs, at some speed")
    patience: int | None = option(None, "stop after this many epochs without a better validation loss")
    seed: int = option(0, "of weights, order of images and noise; equal seeds give equal runs")
    log_every: int = option(10, "steps between two rows of the logs")
    checkpoint_every: int = option(200, "steps between two saves of the last checkpoint")
    progress: bool = option(True, "show progress bars")

    def __post_init__(self) -> None:
        inside = os.path.normpath(self.name)
        if not self.name or os.path.isabs(inside) or inside.split(os.sep)[0] in (".", ".."):
            raise ValueError(
                f"name must be that of a folder inside runs, got {self.name!r}; give --name NAME"
            )
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        self._at_least(1, "epochs", "steps", "batch_size", "accumulate", "devices", "patience", "log_every")
        self._at_least(1, "checkpoint_every")
        self._at_least(0, "warmup", "seed")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32 = {2**32}, got {self.seed}")
        self._one_of("schedule", "constant", "cosine")
        self._one_of("precision", *PRECISIONS)
        self._one_of("accelerator", "auto", "cpu", "gpu")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.lr > 1e30:
            raise ValueError(f"lr must be at most 1e30, as weights are float32, got {self.lr}")

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < least:
                raise ValueError(f"{name} must be at least {least}, got {_shown(value)}")

    def _one_of(self, name: str, *accepted: str) -> None:
        if getattr(self, name) not in accepted:
            listed = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
            raise ValueError(f"{name} must be {listed}, got {getattr(self, name)!r}")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> Self:
        """Checks names and types. Raises ValueError naming ``source``, the setting and the nearest name."""
        hints = _settings(cls)
        for name in values:
            if name not in hints:
                for other in LoopConfig.__subclasses__():
                    if name in _settings(other):
                        raise ValueError(
                            f"{source} is of a {other.command} run, not of a {cls.command} run: it sets "
                            f"{name}; give another name (--name) or configuration (--config)"
                        )
                near = difflib.get_close_matches(name, hints, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{source}: unknown setting {name!r}{hint}")
        converted = {name: _convert(value, hints[name], name, source) for name, value in values.items()}
        return cls(**converted)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a YAML file, or by name from ``models/configs``."""
        return cls.from_mapping(read_yaml(path), str(path))

    def check_resumes(self, earlier: Self) -> None:
        """ValueError unless a run with the settings ``earlier`` can go on with these."""
        for name, before in vars(earlier).items():
            now = getattr(self, name)
            if name not in MAY_CHANGE and now != before:
                raise ValueError(
                    f"{name} is {_shown(now)}, but the run in {self.folder} has {_shown(before)}, which "
                    f"--resume keeps; leave {name} out, or choose another name (--name) or --overwrite"
                )

    def save(self, path: Path) -> None:
        import yaml

        values = {
            name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()
        }
        path.write_text(yaml.safe_dump(values, sort_keys=False))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, LoopConfig):
    """A VAE, VQ-VAE or VQ-VAE-2 and its data.

    ``beta`` and ``likelihood`` that are None become those of the model when the settings are made: a VAE
    minimises the ELBO by default, the others squared error and commitment loss. ``replace(model=...)``
    keeps what they have become.
    """

    command: ClassVar[str] = "train"

    model: str = option("vqvae", "vqvae, vqvae2 or vae")
    hidden: int = option(128, "channels of the convolutions")
    residual_layers: int = option(2, "residual blocks on either side")
    residual_hidden: int = option(32, "channels inside a residual block")
    embedding_dim: int = option(64, "D, the dimension of a code")
    codebook_size: int = option(512, "K, the number of codes")
    downscale: int = option(4, "vqvae: image size over code map size: 2, 4 or 8")
    downscales: tuple[int, ...] = option((4, 2), "vqvae2: downscale of each level, bottom first")
    codebook: str = option("ema", "how codes are learnt: ema or gradient")
    alpha: float = option(1.0, "weight of the codebook loss (gradient codebooks)")
    beta: float | None = option(
        None, "weight of the commitment loss, by default 0.25; vae: of the KL term, by default 1"
    )
    decay: float = option(0.99, "decay of the codes' moving averages")
    kmeans_init: bool = option(False, "start the codebook from k-means of the first batch")
    dead_code_threshold: float = option(0.0, "restart codes whose averaged count falls below this")
    likelihood: str | None = option(
        None, "mse, gaussian, logistic or categorical; by default gaussian for a vae, else mse"
    )
    latent_dim: int = option(128, "vae: dimension of the latent")
    kl_warmup: int = option(0, "vae: steps over which the weight of the KL term rises from zero")
    channels_vae: tuple[int, ...] = option((32, 64, 128, 256), "vae: widths of the four convolutions")
    pictures_every: int = option(1, "epochs between two pictures of reconstructions; 0 for none")

    def __post_init__(self) -> None:
        likelihood, beta = ("gaussian", 1.0) if self.model == "vae" else ("mse", 0.25)
        for name, value in (("likelihood", likelihood), ("beta", beta)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # frozen for others
        super().__post_init__()
        self._at_least(2, "hidden")  # the first convolution has half as many
        self._at_least(1, "residual_hidden", "embedding_dim", "codebook_size", "downscale", "downscales")
        self._at_least(1, "latent_dim", "channels_vae", "limit")
        self._at_least(0, "residual_layers", "alpha", "beta", "dead_code_threshold", "kl_warmup")
        self._at_least(0, "pictures_every", "decay")
        self._one_of("codebook", "ema", "gradient")
        if self.decay > 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}")


@dataclass(frozen=True, kw_only=True)
class PriorConfig(LoopConfig):
    """Priors over the codes of a trained VQ-VAE or VQ-VAE-2, one for each level."""

    command: ClassVar[str] = "train-prior"

    name: str = option("prior", "name of the run")
    codes: str = option("", "folder of codes written by `encode`")
    prior: str = option("transformer", "transformer, pixelcnn or pixelsnail")
    conditional: bool | None = option(None, "condition on the labels; by default where the codes have them")
    width: int = option(64, "channels of the network")
    layers: int = option(3, "number of layers or blocks")
    heads: int = option(4, "attention heads (transformer, pixelsnail)")
    dropout: float = option(0.1, "dropout probability")
    kernel_size: int = option(5, "pixelsnail, pixelcnn: size of the convolutions, odd")
    res_blocks: int = option(4, "pixelsnail: residual blocks in each of its layers")
    res_channels: tuple[int, ...] = option(
        (0,), "pixelsnail: inside residual blocks; 0 for width; " + PER_LEVEL
    )
    attention: tuple[bool, ...] = option((True,), "pixelsnail: attend to all earlier codes; " + PER_LEVEL)
    out_res_blocks: tuple[int, ...] = option((0,), "pixelsnail: blocks before the output; " + PER_LEVEL)
    upper_blocks: int = option(3, "pixelsnail, pixelcnn: residual blocks that read the level above")
    upper_channels: int | None = option(None, "pixelsnail: channels of those blocks; by default width")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "width", "layers", "heads", "res_blocks", "upper_blocks", "upper_channels")
        self._at_least(0, "res_channels", "out_res_blocks")
        if not self.attention:
            raise ValueError("attention must be true or false for each level, got nothing")
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def _settings(kind: type[LoopConfig]) -> dict[str, Any]:
    """The settings of ``kind`` and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A flat mapping from a YAML file; a bare name is looked up in ``models/configs``."""
    import yaml

    file = Path(path)
    if not file.is_file() and (CONFIG_FOLDER / f"{path}.yaml").is_file():
        file = CONFIG_FOLDER / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(entry.stem for entry in CONFIG_FOLDER.glob("*.yaml")))
        raise ValueError(f"configuration {str(path)!r} does not exist; give a YAML file or one of: {known}")
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold lines of the form `setting: value`")
    return values


def _convert(value: Any, hint: Any, name: str, source: str) -> Any:
    """YAML gives 1e-3 as a string and lists for tuples; anything else must already have the right type."""
    from typing import get_args

    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not Ellipsis]
    if getattr(hint, "__origin__", None) is tuple:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(_convert(part, kinds[0], name, source) for part in parts)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        return kind(value) if kind is not int else int(float(value))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: {name} must be {_kind_name(kind)}, got {value!r}") from error


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind_name(kind: type) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind.__name__, "text")
