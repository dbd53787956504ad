"""From the settings of a run to its model and its priors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.autoencoders.blocks import initialize_as_sonnet
from models.autoencoders.vae import VAE
from models.autoencoders.vqvae import VQVAE
from models.autoencoders.vqvae2 import VQVAE2
from models.codes.description import CodeDescription
from models.data import ImageData
from models.priors import PixelCNN, PixelSNAIL, TransformerPrior
from models.runs.config import PriorConfig, TrainConfig
from models.settings import format_value
from vq_kernels.checks import check_choice

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder
    from models.priors import AutoregressivePrior


def build_model(config: TrainConfig, data: ImageData) -> Autoencoder:
    """The model that ``config`` names, for data of the kind, channels and size of ``data``.

    The fixed variance of the ``mse`` likelihood is by default the variance of the data, so that its loss is
    the normalised squared error. Raises ValueError for an unknown model, a size that does not divide, or
    settings that are not for this kind of data.
    """
    check_choice(("vqvae", "vqvae2", "vae"), model=config.model)
    check_choice(data.kind.likelihoods, likelihood=config.likelihood)
    config.check_augments(data.kind)
    loss: dict[str, Any] = {
        "beta": config.beta,
        "likelihood": config.likelihood,
        **config.decoder_settings(data.variance),
        "data_levels": data.kind.levels,
        "scale": data.kind.scale(data.variance),
    }
    if config.model == "vae":
        return VAE(
            data.channels, data.size, latent_dim=config.latent_dim, channels=config.channels_vae, **loss
        )
    shared: dict[str, Any] = loss | {
        "hidden": config.hidden,
        "residual_layers": config.residual_layers,
        "residual_hidden": config.residual_hidden,
        "manual_ema_update": config.accumulate > 1,
        "ndim": data.kind.ndim,
    }
    shared |= config.quantizer_settings()
    if config.model == "vqvae":
        model: Autoencoder = VQVAE(data.channels, downscale=config.downscale, **shared)
    else:
        sizes = config.level_codebook_sizes
        shared |= {"level_codebook_sizes": sizes} if sizes != (0,) else {}
        model = hierarchy = VQVAE2(data.channels, downscales=config.downscales, **shared)
        hierarchy.level_dropout = tuple(config.shares_of_levels(len(config.downscales)))
    if config.init_weights == "sonnet":
        model.apply(initialize_as_sonnet)
    model.check_size(data)
    return model


def build_priors(config: PriorConfig, description: CodeDescription) -> list[AutoregressivePrior]:
    """Priors of the levels of :func:`trained_levels`; each lower one is conditioned on the level above it."""
    check_choice(("transformer", "pixelcnn", "pixelsnail"), prior=config.prior)
    if config.conditional and not description.class_names:
        raise ValueError(
            f"conditional is true, but the codes of {description.data} in {config.codes} have no labels; "
            f"leave it out (--no-conditional), or encode labelled images"
        )
    classes = len(description.class_names) if config.conditional is not False else 0
    levels = len(description.shapes)
    if config.label_dropout and not classes:
        raise ValueError(
            f"label_dropout is {config.label_dropout}; accepted: 0, as the prior is not conditional on labels"
        )
    attention, res_channels, out_res_blocks = (
        _of_levels(config, name, levels) for name in ("attention", "res_channels", "out_res_blocks")
    )
    priors: list[AutoregressivePrior] = []
    for level in trained_levels(config, description):
        shape = description.shapes[level]
        size = description.vocabulary(level)
        conditions: dict[str, Any] = {
            "num_classes": classes or None,
            "null_label": config.label_dropout > 0,
            "upper_codebook_size": description.vocabulary(level - 1) if level else None,
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
        if len(shape) not in prior.map_axes:
            raise ValueError(
                f"prior is {config.prior!r}; accepted for code maps of shape {tuple(shape)}: 'transformer'"
            )
        priors.append(prior)
    return priors


def trained_levels(config: PriorConfig, description: CodeDescription) -> list[int]:
    """The levels whose priors a run trains, top first: all, or the one that it names. ValueError."""
    levels = list(range(len(description.shapes)))
    if config.level is None:
        return levels
    if config.level not in levels:
        accepted = f"0 (top) to {levels[-1]}" if len(levels) > 1 else "0, the only one"
        raise ValueError(f"level is {config.level}; accepted: {accepted}, of these codes")
    return [config.level]


def _of_levels(config: PriorConfig, name: str, levels: int) -> tuple[Any, ...]:
    """A setting for each level, from one for all or one for each."""
    values: tuple[Any, ...] = getattr(config, name)
    if len(values) not in (1, levels):
        raise ValueError(
            f"{name} is {format_value(values)}; accepted: one value, or one for each of {levels} levels"
        )
    return values * levels if len(values) == 1 else values
