"""``sample``: new images from priors and decoder, as a picture, with their codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.cli.flags import add_device_flag, as_code_model, check_output, open_priors

if TYPE_CHECKING:
    from models.codes.store import CodeDescription
    from models.evaluation.judge import Judge
    from models.priors.base import AutoregressivePrior

SAMPLES_AT_ONCE = 512


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("sample", help="draw new images", description=__doc__)
    parser.add_argument("prior_folder", metavar="PRIOR", help="folder of a train-prior run")
    parser.add_argument("--classes", help="names of classes, separated by commas (all)")
    parser.add_argument("--count", type=int, default=10, help="samples of each class, or in all (10)")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits (1.0)")
    parser.add_argument("--top-k", type=int, help="draw among the k likeliest codes only")
    parser.add_argument(
        "--top-p", type=float, help="draw among the likeliest codes of this total probability"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draws; each kind of device has its own (0)"
    )
    add_device_flag(parser)
    parser.add_argument(
        "--model", help="run or folder of the decoder, if it has moved since it wrote the codes"
    )
    parser.add_argument("--out", help="folder (PRIOR/samples)")
    parser.add_argument(
        "--judge",
        metavar="DATA",
        help="train a classifier on these real images and print how many samples it takes for their class",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from models.codes.sample import decode, sample_codes
    from models.codes.store import CodeDescription
    from models.evaluation.pictures import grid, save_image
    from models.pretrained import load_pretrained
    from models.runs.device import find_device
    from models.runs.priors import check_prior_of, model_folder

    if arguments.count < 1:
        raise ValueError(f"count must be at least 1, got {arguments.count}")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {arguments.seed}")
    device = find_device(arguments.device)
    priors = open_priors(arguments.prior_folder, device)
    description = CodeDescription.load(Path(arguments.prior_folder))
    decoder = model_folder(arguments.model or description.model)
    check_prior_of(arguments.prior_folder, decoder)
    loaded: Any = load_pretrained(decoder, device)
    model = as_code_model(loaded)
    classes = chosen_classes(arguments.classes, description.class_names, priors[0].num_classes)
    folder = check_output(arguments.out or Path(arguments.prior_folder) / "samples", folder=True)
    judge = open_judge(arguments, priors, description) if arguments.judge is not None else None
    labels = torch.tensor(classes, device=device).repeat_interleave(arguments.count)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    parts = [
        sample_codes(
            priors,
            description.shapes,
            some,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            generator=generator,
        )
        for some in labels.split(SAMPLES_AT_ONCE)
    ]
    codes = [torch.cat(level) for level in zip(*parts, strict=True)]
    columns = arguments.count if priors[0].num_classes else min(arguments.count, 16)
    images = torch.cat([decode(model, part).cpu() for part in parts])
    picture = save_image(grid(images, columns), folder / "samples.png")
    arrays: dict[str, Any] = {f"level{number}": level.cpu().numpy() for number, level in enumerate(codes)}
    np.savez(folder / "codes.npz", labels=labels.cpu().numpy(), **arrays)
    print(f"{len(labels)} samples in {picture}, their codes in {folder / 'codes.npz'}")
    if judge is not None:
        machine, accuracy = judge
        print(
            f"a classifier, right on {accuracy:.1%} of the real test images, takes "
            f"{machine.agreement(images, labels.cpu()):.1%} of the samples for the class asked for"
        )


def open_judge(
    arguments: argparse.Namespace, priors: Sequence[AutoregressivePrior], description: CodeDescription
) -> tuple[Judge, float]:
    """A judge trained on the data of ``--judge`` in the size and channels of the codes' images; its accuracy.

    Of the data that were encoded, it reads the same columns and splits, all images of them. ValueError
    unless the classes are those of the prior, in the same order.
    """
    from models.data import DataConfig, load_data
    from models.data.sources import location
    from models.evaluation.judge import Judge
    from models.runs.priors import check_classes

    if not priors[0].num_classes:
        raise ValueError("--judge needs samples of classes; this prior was trained without labels")
    names: tuple[str, ...] = ("size", "channels")
    if location(arguments.judge) == description.data:
        names += ("image_column", "label_column", "validation", "test", "split_seed")
    known = {name: description.settings[name] for name in names if name in description.settings}
    data = load_data(DataConfig(data=arguments.judge, **known), stream=True)
    check_classes(arguments.prior_folder, priors, f"the judge's data {data.name}", data.class_names)
    judge = Judge(data.train)
    return judge, judge.accuracy(data.test)


def chosen_classes(names: str | None, known: tuple[str, ...], num_classes: int | None) -> list[int]:
    """Label numbers of the classes asked for; ValueError naming the classes there are."""
    if num_classes is None:
        if names:
            raise ValueError(
                f"classes are {names!r}, but this prior was trained without labels (--conditional)"
            )
        return [0]
    if not names:
        return list(range(num_classes))
    if names in known:  # one class, whose name may hold a comma
        return [known.index(names)]
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise ValueError(f"unknown class {name!r}; the classes are: {', '.join(known)}")
    return [known.index(name) for name in chosen]
