"""``python -m models.demo``: from real handwritten digits to reconstructions and samples of each class.

Trains a VQ-VAE on the 8 x 8 digits inside scikit-learn, then a class-conditional Transformer prior over
its codes, and prints what was reached on held-out digits. A support vector machine trained on the real
digits judges whether the samples show the digit that was asked for.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from models.codes.encode import encode
from models.codes.sample import decode, sample_codes
from models.codes.store import CodeStore
from models.data import ImageData, load_data, to_float
from models.evaluation.evaluate import evaluate
from models.evaluation.judge import Judge
from models.evaluation.pictures import labelled_rows, save_image, side_by_side
from models.runs.config import PriorConfig, TrainConfig
from models.runs.layout import RunLayout

if TYPE_CHECKING:
    from torch import Tensor

    from models.autoencoders.vqvae import VQVAE
    from models.priors.base import AutoregressivePrior

SAMPLES_PER_CLASS = 50
TEMPERATURE = 0.8  # below 1: fewer unlikely codes, clearer digits


def main() -> None:
    """Runs the whole demo and writes its pictures under ``runs/demo``."""
    start = time.perf_counter()
    torch.set_num_threads(choose_threads(os.environ))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a character is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    config = TrainConfig.load("demo")
    data = load_data(config)
    print(f"{len(data.train)} digits to train on, {len(data.test)} held out\n\n1. VQ-VAE", flush=True)
    model = train_vqvae(config, data)
    layout = config.layout
    held_out = to_float(data.test.batch(range(48)))
    codes = model.encode(held_out)
    picture = save_image(side_by_side(held_out, decode(model, codes)), layout.folder / "reconstructions.png")

    print("\n2. Transformer prior over its codes, conditional on the class", flush=True)
    store, priors = train_code_prior(model, data, layout)
    figures = evaluate(model, data, priors=priors)

    samples, labels = sample_digits(model, store, priors, len(data.class_names))
    first = samples.unflatten(0, (-1, SAMPLES_PER_CLASS))[:, :16].flatten(0, 1)
    sheet = labelled_rows(layout.folder / "samples.png", first, data.class_names)
    judge = Judge(data.train)
    agreement, accuracy = judge.agreement(samples, labels), judge.accuracy(data.test)

    print(f"\nOn {len(data.test)} held-out digits:")
    for text, name in (
        ("reconstruction error (MSE, pixels in 0..1)", "mse"),
        ("  relative to the data's variance", "nmse"),
        ("structural similarity (SSIM)", "ssim"),
        (f"perplexity of {model.codebook_size} codes", "perplexity"),
        ("share of codes used", "usage"),
        ("bits per dimension", "bits_per_dim"),
    ):
        print(f"  {text:44s} {figures[name]:.4f}")
    print(
        f"\nOf {len(labels)} samples a classifier (accuracy on held-out digits {accuracy:.1%}) takes "
        f"{agreement:.1%} for the class asked for.\n\n"
        f"originals beside reconstructions  {picture}\n"
        f"curves                            {layout.curves}\n"
        f"samples, one class a row          {sheet}\n\n"
        f"{time.perf_counter() - start:.0f} s in all"
    )


def choose_threads(environment: Mapping[str, str]) -> int:
    """The threads to work on: one, unless ``OMP_NUM_THREADS`` in ``environment`` asks for another number.

    On images of 8 x 8 pixels a layer takes a fraction of a millisecond: more threads gain little on quiet
    cores, and wait for each other where others use them too, which makes the demo many times slower. How
    busy the cores will be in a minute, nobody knows at the start. ValueError unless it is a number above 0.
    """
    asked = environment.get("OMP_NUM_THREADS", "").strip() or "1"
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"OMP_NUM_THREADS is {asked!r}; accepted: an integer of at least 1")
    return int(asked)


def train_vqvae(config: TrainConfig, data: ImageData) -> VQVAE:
    """The demo's VQ-VAE, trained anew."""
    from models.autoencoders.vqvae import VQVAE
    from models.training.autoencoder import train

    model = train(config, data, overwrite=True)
    if not isinstance(model, VQVAE):
        raise TypeError(f"model is a {type(model).__name__}; accepted: a VQVAE, as the demo's settings say")
    return model


def train_code_prior(
    model: VQVAE, data: ImageData, layout: RunLayout
) -> tuple[CodeStore, list[AutoregressivePrior]]:
    """The codes of ``data`` and the priors over them, trained anew."""
    from models.training.prior import train_prior

    store = encode(model, data, layout.codes, source=str(layout.model))
    return store, train_prior(PriorConfig.load("demo-prior"), store, overwrite=True)


def sample_digits(
    model: VQVAE, store: CodeStore, priors: list[AutoregressivePrior], classes: int
) -> tuple[Tensor, Tensor]:
    """Images ``[classes * SAMPLES_PER_CLASS, 1, 8, 8]`` and the class asked for of each."""
    labels = torch.arange(classes).repeat_interleave(SAMPLES_PER_CLASS)
    generator = torch.Generator().manual_seed(0)
    codes = sample_codes(
        priors, store.description.shapes, labels, temperature=TEMPERATURE, generator=generator
    )
    return decode(model, codes), labels


if __name__ == "__main__":
    main()
