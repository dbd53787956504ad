"""Bits per dimension of VAE and VQ-VAE under several likelihoods.

Published on CIFAR-10 (van den Oord et al. 2017): VAE 4.51, VQ-VAE 4.67, VIMCO 5.14 bits per dimension.
The VQ-VAE there: two stride-2 convolutions, two residual blocks of 256 hidden units, Adam 2e-4, batch 128,
250,000 steps, beta 0.25, decay 0.99, 8 x 8 x 10 codes an image.

Of the theory there: with an autoregressive decoder a VAE gives its latents up and a VQ-VAE does not; log p(x)
is taken for log p(x | z_q) p(z_q); the gradient copied to the encoder moves its outputs into other cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.data.columns import find_item_column
from models.data.sources import open_source
from models.data.splits import named_splits
from models.evaluation.tables import Row
from models.runs.config import TrainConfig
from models.studies.figures import compare_reconstructions, stacked_bars
from models.studies.runner import Runner, StudyOptions, check_real_data
from models.studies.theory import embedding_picture, likelihood_bound, posterior_collapse

if TYPE_CHECKING:
    from models.priors.base import AutoregressivePrior

OPTIONS = ("batch_size",)
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "data": "digits",
        "epochs": 50,
        "batch_size": 64,
        "lr": 2e-3,
        "hidden": 32,
        "embedding_dim": 16,
        "codebook_size": 64,
        "downscale": 2,
        "decay": 0.95,
        "kmeans_init": True,
        "dead_code_threshold": 1.0,
        "latent_dim": 16,
        "kl_warmup": 300,
        "schedule": "cosine",
    },
    "real": {
        "data": "cifar10_lossless",  # a folder of tables of lossless images; of sounds or volumes: KINDS
        "epochs": 4,
        "batch_size": 64,
        "lr": 1e-3,
        "hidden": 48,
        "downscale": 4,
        "kmeans_init": True,
        "dead_code_threshold": 1.0,
        "latent_dim": 128,
        "kl_warmup": 100,
        "schedule": "cosine",
        "precision": "bf16-mixed",
        "pictures_every": 0,
    },
    "paper": {
        "data": "uoft-cs/cifar10",
        "epochs": 1000,
        "steps": 250_000,
        "batch_size": 128,
        "lr": 2e-4,
        "hidden": 256,
        "residual_hidden": 256,
        "downscale": 4,
        "heads": 10,  # 8 x 8 x 10 codes an image
        "latent_dim": 128,
        "kl_warmup": 5000,
        "pictures_every": 50,
    },
}
# At real scale of data of another kind, in place of those above.
KINDS: dict[str, dict[str, Any]] = {
    "audio": {
        "length": 4096,
        "epochs": 6,
        "batch_size": 16,
        "hidden": 32,
        "embedding_dim": 32,
        "downscale": 16,
        "channels_vae": (16, 32, 64, 64),
    },
    "volume": {
        "epochs": 12,
        "batch_size": 8,
        "hidden": 24,
        "residual_hidden": 16,
        "embedding_dim": 32,
        "codebook_size": 256,
        "channels_vae": (8, 16, 32, 32),
    },
}
PRIORS: dict[str, dict[str, Any]] = {
    "small": {
        "prior": "transformer",
        "width": 64,
        "epochs": 25,
        "lr": 2e-3,
        "dropout": 0.2,
        "schedule": "cosine",
    },
    "real": {
        "prior": "pixelcnn",
        "width": 48,
        "layers": 5,
        "epochs": 2,
        "batch_size": 64,
        "lr": 2e-3,
        "schedule": "cosine",
        "precision": "bf16-mixed",
    },
    # Over the ten codes of a position too, which a PixelCNN over maps does not take.
    "paper": {"prior": "transformer", "width": 256, "layers": 8, "heads": 8, "epochs": 100, "batch_size": 64},
}
# A PixelCNN is one over maps: over the codes of sounds and volumes a Transformer.
KIND_PRIOR: dict[str, Any] = {"prior": "transformer", "width": 64, "layers": 3, "batch_size": 8}
# Of the theory, beside the settings above. No warm-up of the KL term: with one, a dimension of the latent may
# survive the autoregressive decoder (300 steps on digits: 1.4 nats in one dimension, 2 active units).
COLLAPSE: dict[str, dict[str, Any]] = {
    "small": {
        "likelihood": "logistic",
        "kl_warmup": 0,
        "decoder_width": 16,
        "decoder_layers": 2,
        "epochs": 40,
    },
    "paper": {
        "likelihood": "categorical",
        "kl_warmup": 0,
        "decoder_width": 64,
        "decoder_layers": 6,
        "steps": 50_000,
    },
}
# 2 x 2 positions of 8 codes: 4,096 maps.
FEW_MAPS: dict[str, dict[str, Any]] = {
    "small": {"downscale": 4, "codebook_size": 8},
    "paper": {"downscale": 16, "codebook_size": 8, "heads": 1, "steps": 20_000},
}
TWO_DIMENSIONS: dict[str, dict[str, Any]] = {
    "small": {"embedding_dim": 2, "codebook_size": 16},
    "paper": {"embedding_dim": 2, "codebook_size": 64, "heads": 1, "steps": 20_000},
}
# On a processor a step with 256 probabilities for each channel of a pixel takes over 30 times as long as with
# the others: it has no place in an hour.
LIKELIHOODS: dict[str, tuple[str, ...]] = {
    "small": ("gaussian", "logistic", "categorical"),
    "real": ("gaussian", "logistic"),
    "paper": ("gaussian", "logistic", "categorical"),
}
PUBLISHED = {"image": " Published on CIFAR-10: VAE 4.51, VQ-VAE 4.67, VIMCO 5.14."}
UNITS = {
    "image": "A dimension is one channel of one pixel with 256 levels",
    "audio": "A dimension is one sample with 65,536 levels",
    "volume": "A dimension is one voxel with 256 levels",
}
DIGITS = "; digits have 17 of them, far apart"


def run(options: StudyOptions) -> Path:
    """Train both models under each likelihood, priors for the VQ-VAEs; write the table of all terms.

    At small and paper scale also what the theory says of collapse, the bound and the embedding space.
    """
    own, prior = _of_kind(options)
    runner = Runner("likelihood", options, SETTINGS | {options.scale: own}, OPTIONS, kinds=tuple(UNITS))
    rows: list[Row] = []
    bars: dict[str, dict[str, float]] = {}
    shown = {}
    for model in ("vae", "vqvae"):
        for likelihood in LIKELIHOODS[options.scale]:
            name = f"{model}-{likelihood}"
            # A VAE whose loss is the ELBO has beta 1; the VQ-VAE's commitment weight is the paper's.
            trained = runner.train(
                name, model=model, likelihood=likelihood, beta=1.0 if model == "vae" else 0.25
            )
            priors: list[AutoregressivePrior] = []
            if model == "vqvae":
                _, priors = runner.train_priors(trained, f"{name}-prior", **prior)
            metrics = runner.evaluate(trained, priors=priors)
            latent = float(metrics["bits_kl" if model == "vae" else "bits_codes_prior"])
            bars[name] = {"decoder": float(metrics["bits_decoder"]), "KL or codes": latent}
            uniform = metrics.get("bits_per_dim_uniform", "")
            rows.append(
                {
                    "model": model,
                    "likelihood": likelihood,
                    "decoder": metrics["bits_decoder"],
                    "KL or codes": latent,
                    "bits/dim": metrics["bits_per_dim"],
                    "bits/dim, uniform codes": uniform,
                    "nmse": metrics["nmse"],
                }
            )
            shown[name] = trained.model
    kind = runner.data.kind.name
    units = UNITS[kind] + (DIGITS if runner.data.name == "digits" else "")
    runner.write_table(
        "bits",
        rows,
        f"Test split of {runner.data_name}. {units}.{PUBLISHED.get(kind, '')}",
    )
    caption = runner.caption("test", "beta")
    stacked_bars(runner.folder / "bits.png", bars, "bits per dimension", caption=caption)
    compare_reconstructions(runner.folder / "reconstructions.png", runner.data, shown, caption=caption)
    if options.scale in COLLAPSE:
        posterior_collapse(runner, COLLAPSE[options.scale])
        likelihood_bound(runner, FEW_MAPS[options.scale], prior)
        embedding_picture(runner, TWO_DIMENSIONS[options.scale])
    return runner.folder


def _of_kind(options: StudyOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the models and of the priors, at real scale by the kind of data."""
    settings, prior = SETTINGS[options.scale], PRIORS[options.scale] | {"conditional": False}
    if options.scale != "real":
        return settings, prior
    check_real_data(options, settings["data"])
    config = TrainConfig(data=settings["data"] if options.data is None else options.data)
    splits, _ = named_splits(open_source(config).splits, config)
    kind = find_item_column(splits["train"], config)[1].name
    return settings | KINDS.get(kind, {}), prior | (KIND_PRIOR if kind in KINDS else {})
