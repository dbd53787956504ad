"""``sample``: new items from priors and decoder, or a VAE, as a picture, with their codes or latents."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from models.autoencoders.base import require_codes
from models.cli.flags import add_command, add_device_flag, add_import_flag, check_output
from models.cli.latents import sample_latents, write_samples
from models.files import only_writer
from models.progress import progress_bar
from models.runs.layout import RunLayout
from models.runs.open import load_pretrained, open_priors
from vq_kernels.checks import check_integer

SAMPLES_AT_ONCE = 512


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
        ],
    )
    parser.add_argument(
        "prior_folder", metavar="RUN", help="folder of a train-prior run, or of a train run of a VAE"
    )
    parser.add_argument("--classes", help="names of classes, separated by commas (all)")
    parser.add_argument("--count", type=int, default=10, help="samples of each class, or in all (10)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="divides the logits; vae: multiplies the latents (1.0)"
    )
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest codes only")
    parser.add_argument(
        "--top-p", type=float, help="draw among the likeliest codes of this total probability"
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from models.codes.description import CodeDescription
    from models.codes.sample import decode, sample_codes
    from models.data.kinds import kind_of_settings
    from models.evaluation.judge import Judge
    from models.evaluation.pictures import grid, labelled_rows, save_image
    from models.runs.device import find_device
    from models.runs.export import say_if_unfinished, usable_model
    from models.runs.priors import check_prior_of, class_labels, judge_data

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
    description = CodeDescription.load(layout.folder)
    decoder = usable_model(arguments.model or description.model)
    check_prior_of(layout.folder, decoder)
    say_if_unfinished(decoder)
    loaded: Any = load_pretrained(decoder, device)
    model, kind = require_codes(loaded), kind_of_settings(description.settings)
    classes = class_labels(arguments.classes, description.class_names, priors[0].num_classes)
    folder = check_output(arguments.out or layout.samples, folder=True)
    judge, accuracy = None, 0.0
    if arguments.judge is not None:
        real = judge_data(arguments.judge, layout.folder, priors, description)
        print(f"training a classifier on {real.describe()}", flush=True)
        judge = Judge(real.train)
        accuracy = judge.accuracy(real.test)
    labels = torch.tensor(classes, device=device).repeat_interleave(arguments.count)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    positions = sum(math.prod(shape) for shape in description.shapes)
    with only_writer(folder):
        parts: list[tuple[torch.Tensor, ...]] = []
        with progress_bar(len(labels) * positions, "sample", "code", enabled=True) as bar:
            for batch in labels.split(SAMPLES_AT_ONCE):
                drawn = sample_codes(
                    priors,
                    description.shapes,
                    batch,
                    temperature=arguments.temperature,
                    top_k=arguments.top_k,
                    top_p=arguments.top_p,
                    generator=generator,
                    on_drawn=bar.update,
                )
                parts.append(drawn)
        decoded: list[torch.Tensor] = []
        with progress_bar(len(labels), "decode", kind.item, enabled=True) as bar:
            for part in parts:
                decoded.append(decode(model, part).cpu())
                bar.update(len(part[0]))
        codes, images = [torch.cat(level) for level in zip(*parts, strict=True)], torch.cat(decoded)
        picture, pictures = folder / "samples.png", kind.pictures(images)
        columns = min(arguments.count, 2 * kind.columns)
        names = [description.class_names[number] for number in classes] if priors[0].num_classes else []
        if names:
            labelled_rows(picture, pictures, names, columns)
        else:
            save_image(grid(pictures, columns), picture)
        if kind.has_files:
            write_samples(kind, images, folder, names)
        arrays: dict[str, Any] = {f"level{i}": level.cpu().numpy() for i, level in enumerate(codes)}
        np.savez(folder / "codes.npz", labels=labels.cpu().numpy(), **arrays)
    as_files = f", as files in {folder / kind.items}" if kind.has_files else ""
    print(f"{len(labels)} samples in {picture}{as_files}, their codes in {folder / 'codes.npz'}")
    if judge is not None:
        print(
            f"a classifier, right on {accuracy:.1%} of the real test {kind.items}, takes "
            f"{judge.agreement(images, labels.cpu()):.1%} of the samples for the class asked for"
        )
