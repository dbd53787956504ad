"""Settings of a run: plain dataclasses, read from YAML, overridden by flags, written beside the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from models.autoencoders.pixel_decoder import DecoderSettings
from models.autoencoders.quantizer import WITH_CODES, QuantizerSettings
from models.autoencoders.terms import TermSettings
from models.data.augment import AugmentSettings
from models.data.settings import DataConfig, check_data
from models.data.sources import has_subsets
from models.runs.levels import LevelSettings
from models.runs.loop import LoopConfig
from models.settings import setting
from vq_kernels.checks import check_choice, check_number

_SNAIL = ("pixelsnail",)
_MAPS = ("pixelsnail", "pixelcnn")
PER_LEVEL = "one for all levels, or one for each, top first"


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

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Also without values that earlier versions took and that changed nothing, which are refused now."""
        values = super().completed(values)
        if values.get("subset") is not None and not has_subsets(str(values.get("data"))):
            values["subset"] = None
        cache = values.get("cache_gb")
        if isinstance(cache, int | float) and cache < 0:
            values["cache_gb"] = 0.0
        return values


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
