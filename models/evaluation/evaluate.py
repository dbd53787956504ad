"""Quality of a trained model on a split: reconstruction, use of codes, bits per dimension, rFID."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from models.data import BatchLoader, ImageData, to_float
from models.evaluation.calibration import calibrated
from models.evaluation.metrics import ReconstructionMeter, level_names
from models.evaluation.rfid import RFID
from models.pretrained import evaluating
from models.priors.hierarchy import level_log_probs
from models.progress import progress_bar

if TYPE_CHECKING:
    from models.autoencoders.base import Autoencoder
    from models.priors.base import AutoregressivePrior


@torch.no_grad()
def evaluate(
    model: Autoencoder,
    data: ImageData,
    *,
    split: str = "test",
    priors: Sequence[AutoregressivePrior] = (),
    batch_size: int = 100,
    device: str = "cpu",
    fid_weights: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float | str]:
    """Every figure of one model on one split, by name.

    mse, nmse, psnr, mean_psnr, the figures of the kind of data (of images ssim and inner_ssim), and
    perplexity and usage of each level as in
    :meth:`models.evaluation.metrics.ReconstructionMeter.compute`; commitment, the squared error between
    encodings and codes, summed over the levels. Then bits per dimension (a dimension is one channel of one
    pixel, of 256 levels, or of one sample of a sound, of 65,536):

    - VQ-VAEs: ``bits_decoder`` of -log p(x | codes), ``bits_codes_uniform`` for codes that are all
      equally likely, and, with ``priors`` (one a level, top first), ``bits_codes_prior``; their sums
      ``bits_per_dim_uniform`` and ``bits_per_dim`` are upper bounds on -log p(x); with priors that are
      conditional on the class, ``bits_per_dim`` is one on -log p(x | class). ``nats_per_code`` of each level
      is what one of its codes costs under its prior.
    - VAE: ``bits_decoder`` and ``bits_kl``, whose sum ``bits_per_dim`` is the negative ELBO (one sample
      of the latent for each image; ``seed`` fixes it).

    Models and priors stay on ``device``, in the mode that they were in, and torch's generator as it was.

    A Gaussian of fixed variance (``mse``) that ``train`` has not calibrated, as in a converted model, takes
    the squared error on the validation split for these figures; the model stays as it is.

    ``rfid``, of images, is the Frechet distance in the features of ``fid_weights``, or the reason why it is
    missing.
    ``progress`` shows a bar. ValueError for a model, priors or feature network that do not take the data.

    For example, ``evaluate(model, data, split="validation")["psnr"]`` is the PSNR in dB.
    """
    model.check_size(data)
    for prior in priors:
        if prior.num_classes not in (None, len(data.class_names)):
            raise ValueError(
                f"the number of classes of {data.name} is {len(data.class_names)}; accepted: "
                f"{prior.num_classes}, those of the priors; give data with the labels they were trained on "
                f"(label_column)"
            )
    model = model.to(device)
    for prior in priors:
        prior.to(device)
    meter = ReconstructionMeter([level.codebook_sizes for level in model.level_quantizers], data.kind)
    images_of = data.split(split)
    fid = RFID(fid_weights, data.kind, len(images_of), device)
    nats: dict[str, float] = {}
    per_code: dict[str, float] = {}
    names = level_names(len(model.level_quantizers))
    commitment: float | None = None
    cards = range(torch.cuda.device_count())  # a seed is that of all of them
    with (
        evaluating(model, *priors),
        torch.random.fork_rng(cards),
        calibrated(model, data.validation, batch_size),
        progress_bar(len(images_of), "evaluate", data.kind.item, enabled=progress) as bar,
    ):
        torch.manual_seed(seed)
        for images, labels in BatchLoader(images_of, batch_size):
            x = to_float(images.to(device))
            output = model(x)
            reconstruction = model.clean_reconstruction(x, output)
            if "commitment" in output.terms:
                commitment = (commitment or 0.0) + float(output.terms["commitment"]) * len(x)
            terms = model.nats(x, output)
            if priors:
                levels = level_log_probs(priors, output.codes, labels.to(device))
                terms["codes_prior"] = -torch.stack(levels).sum(0)
                for name, values, maps in zip(names, levels, output.codes, strict=True):
                    per_code[name] = per_code.get(name, 0.0) - float(values.double().sum()) / maps[0].numel()
            meter.update(x, reconstruction, output.codes)
            fid.update(images.to(device), reconstruction)
            for name, values in terms.items():
                nats[name] = nats.get(name, 0.0) + float(values.double().sum())
            bar.update(len(images))
    result: dict[str, float | str] = dict(meter.compute(data.variance))
    if commitment is not None:
        result["commitment"] = commitment / meter.images
    result |= bits_per_dim(nats, meter.elements)
    result |= {f"nats_per_code{name}": total / meter.images for name, total in per_code.items()}
    if data.kind.has_rfid:
        result["rfid"] = fid.compute()
    return result


def bits_per_dim(nats: dict[str, float], elements: int) -> dict[str, float]:
    """Terms in nats over a whole split to bits per dimension, with their sums."""
    bits = {name: total / (elements * math.log(2)) for name, total in nats.items()}
    result = {f"bits_{name}": value for name, value in bits.items()}
    if "codes_uniform" in bits:
        result["bits_per_dim_uniform"] = bits["decoder"] + bits["codes_uniform"]
    latent = bits.get("codes_prior", bits.get("kl"))
    if latent is not None:
        result["bits_per_dim"] = bits["decoder"] + latent
    return result


def as_table(result: Mapping[str, float | str]) -> str:
    """The figures as lines of a Markdown table."""
    lines = ["| figure | value |", "|---|---|"]
    for name, value in result.items():
        lines.append(f"| {name} | {value:.5g} |" if isinstance(value, float) else f"| {name} | {value} |")
    return "\n".join(lines)
