"""Settings of a run: plain dataclasses, read from YAML, overridden by flags, written beside the results."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

from models.data.options import DataConfig, option

CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training loop needs."""

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
    devices: int | None = option(None, "devices on each machine; by default what torchrun set, else 1")
    accelerator: str = option("auto", "auto, cpu or gpu")
    patience: int | None = option(None, "stop after this many epochs without a better validation loss")
    seed: int = option(0, "of weights, order of images and noise; equal seeds give equal runs")
    log_every: int = option(10, "steps between two rows of the logs")
    checkpoint_every: int = option(200, "steps between two saves of the last checkpoint")
    progress: bool = option(True, "show progress bars")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be constant or cosine, got {self.schedule!r}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str) -> Self:
        """Checks names and types. Raises ValueError naming ``source``, the setting and the nearest name."""
        hints = get_type_hints(cls)
        for name in values:
            if name not in hints:
                near = difflib.get_close_matches(name, hints, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{source}: unknown setting {name!r}{hint}")
        converted = {name: _convert(value, hints[name], name, source) for name, value in values.items()}
        return cls(**converted)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a YAML file, or by name from ``models/configs``."""
        return cls.from_mapping(read_yaml(path), str(path))

    def save(self, path: Path) -> None:
        import yaml

        values = {
            name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()
        }
        path.write_text(yaml.safe_dump(values, sort_keys=False))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig, LoopConfig):
    """A VAE, VQ-VAE or VQ-VAE-2 and its data."""

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
    beta: float = option(0.25, "weight of the commitment loss; vae: weight of the KL term")
    decay: float = option(0.99, "decay of the codes' moving averages")
    kmeans_init: bool = option(False, "start the codebook from k-means of the first batch")
    dead_code_threshold: float = option(0.0, "restart codes whose averaged count falls below this")
    likelihood: str = option("mse", "mse, gaussian, logistic or categorical")
    latent_dim: int = option(128, "vae: dimension of the latent")
    kl_warmup: int = option(0, "vae: steps over which the weight of the KL term rises from zero")
    channels_vae: tuple[int, ...] = option((32, 64, 128, 256), "vae: widths of the four convolutions")
    pictures_every: int = option(1, "epochs between two pictures of reconstructions; 0 for none")


@dataclass(frozen=True, kw_only=True)
class PriorConfig(LoopConfig):
    """Priors over the codes of a trained VQ-VAE or VQ-VAE-2, one for each level."""

    name: str = option("prior", "name of the run")
    codes: str = option("", "folder of codes written by `encode`")
    prior: str = option("transformer", "transformer, pixelcnn or pixelsnail")
    conditional: bool = option(True, "condition on the labels, where the codes have them")
    width: int = option(64, "channels of the network")
    layers: int = option(3, "number of layers or blocks")
    heads: int = option(4, "attention heads (transformer, pixelsnail)")
    dropout: float = option(0.1, "dropout probability")


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


def _kind_name(kind: type) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(kind.__name__, "text")
