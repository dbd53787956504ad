"""``sample``: new items from priors and decoder, or a VAE, as a picture, with their codes or latents."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, add_device_flag, add_import_flag
from models.cli.latents import sample_latents
from models.runs.layout import RunLayout
from models.runs.open import open_priors
from vq_kernels.checks import check_integer


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "sample",
        "draw new images, sounds or volumes",
        "Draw new images, sounds or volumes from priors and decoder, or from a VAE, as a picture (sounds and "
        "volumes as files too), with their codes or latents.",
        [
            "runs/vae --count 100 --interpolate 8",
            "runs/demo-prior",
            "runs/demo-prior --classes 3,8 --count 20 --temperature 0.9 --top-k 40",
            "runs/faces-prior --temperature 0.9,0.5 --top-p 0.9 --guidance 2.5,1.2 --best-of 4 --reject 7 "
            "--two-sample",
        ],
    )
    parser.add_argument(
        "prior_folder", metavar="RUN", help="folder of a train-prior run, or of a train run of a VAE"
    )
    parser.add_argument("--classes", help="names of classes, separated by commas (all)")
    parser.add_argument("--count", type=int, default=10, help="samples of each class, or in all (10)")
    parser.add_argument(
        "--mix",
        choices=("equal", "training"),
        default="equal",
        help="where a part of their names stands for several classes (--classes female,male): as many of "
        "each, or as the training codes have them (equal)",
    )
    levels = parser.add_argument_group("draws of codes: one value for all levels, or one for each, top first")
    levels.add_argument(
        "--temperature",
        type=numbers(float, may_be_none=False),
        default=(1.0,),
        help="divides the logits; vae: multiplies the latents (1.0)",
    )
    levels.add_argument("--top-k", type=numbers(int), help="draw among the k likeliest codes only")
    levels.add_argument(
        "--top-p", type=numbers(float), help="draw among the likeliest codes of this total probability"
    )
    levels.add_argument(
        "--guidance",
        type=numbers(float),
        help="logits without + s (with - without) the label, for a prior trained with --label-dropout; "
        "none: 1",
    )
    chosen = parser.add_argument_group("samples that are chosen, and figures of all steps")
    chosen.add_argument(
        "--best-of", type=int, help="of so many candidates keep the one whose class the priors are surest of"
    )
    chosen.add_argument(
        "--reject",
        type=int,
        metavar="N",
        help="of N such samples keep the one that a classifier of real codes against samples takes most for "
        "real",
    )
    chosen.add_argument(
        "--two-sample",
        action="store_true",
        help="how often a classifier tells samples from real codes, decoded",
    )
    chosen.add_argument(
        "--neighbours",
        action="store_true",
        help="picture of samples and the training images, sounds or volumes nearest to them",
    )
    chosen.add_argument(
        "--codes",
        help="codes of real data, for the last three and for --mix (those that the prior was trained on)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draws; each kind of device has its own (0)"
    )
    add_device_flag(parser)
    add_import_flag(parser)
    parser.add_argument(
        "--model", help="run or folder of the decoder, if it has moved since it wrote the codes"
    )
    parser.add_argument("--out", help="folder (RUN/samples)")
    parser.add_argument(
        "--interpolate",
        type=int,
        metavar="N",
        help="vae: also N rows of images on the way from one test image to another",
    )
    parser.add_argument(
        "--judge",
        metavar="DATA",
        help="train a classifier on these real data and print how many samples it takes for their class",
    )
    parser.add_argument(
        "--judge-model",
        choices=("svm", "cnn"),
        default="svm",
        help="that classifier: svm on pixels, or the spectrogram of sounds, or, of images, a convolutional "
        "network, better on photographs and paintings (svm)",
    )
    parser.set_defaults(run=run)


def numbers(
    kind: Callable[[str], float], *, may_be_none: bool = True
) -> Callable[[str], tuple[float | None, ...]]:
    """The type of a flag that takes numbers with commas between, and ``none`` for none where there may be."""
    one = "a whole number" if kind is int else "a number"

    def parse(text: str) -> tuple[float | None, ...]:
        try:
            return tuple(
                None if may_be_none and part.strip() == "none" else kind(part) for part in text.split(",")
            )
        except ValueError:
            none = ", or none" if may_be_none else ""
            raise argparse.ArgumentTypeError(
                f"is {text!r}; accepted: {one}{none}, or one for each level with commas between"
            ) from None

    return parse


def run(arguments: argparse.Namespace) -> None:
    from models.runs.device import find_device

    check_integer(1, count=arguments.count)
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"seed is {arguments.seed}; accepted: an integer from 0 to below 2**63")
    device = find_device(arguments.device)
    layout = RunLayout(Path(arguments.prior_folder))
    if not layout.description.is_file() and layout.config.is_file():
        sample_latents(arguments, layout, device)
        return
    if arguments.interpolate is not None:
        raise ValueError("interpolate is for a VAE; accepted: the folder of a train run of one")
    priors = open_priors(layout.folder, device)
    from models.cli.drawing import draw_and_measure

    draw_and_measure(arguments, layout, priors, device)
