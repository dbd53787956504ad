"""The part of ``sample`` for a model without codes: images of latents, and on the way between two images."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.cli.flags import check_output
from models.cli.room import check_room
from models.runs.layout import RunLayout
from models.runs.open import load_pretrained, open_run
from models.runs.pictures import made_of
from vq_kernels.checks import check_integer

if TYPE_CHECKING:
    from torch import Tensor

    from models.data.kinds import Kind

AT_ONCE = 512  # images
STEPS = 10  # images in a row on the way from one to another


def sample_latents(arguments: argparse.Namespace, layout: RunLayout, device: str) -> None:
    """Write ``samples.png`` and ``latents.npz``, and ``interpolation.png`` if asked for. ValueError."""
    import numpy as np
    import torch

    from models.autoencoders.vae import VAE
    from models.data import some_rows, to_float
    from models.evaluation.pictures import grid, save_image
    from models.runs.data import kind_of_run
    from models.runs.export import say_if_unfinished, usable_model

    source = usable_model(layout.folder)
    say_if_unfinished(source)
    model = load_pretrained(source, device)
    if not isinstance(model, VAE):
        raise ValueError(
            f"{layout.folder} is the run of a {type(model).__name__}; accepted: that of a VAE, or of a prior "
            f"over its codes (train-prior)"
        )
    only_codes = ("classes", "top_k", "top_p", "guidance", "best_of", "reject", "two_sample", "neighbours")
    meant_otherwise = {"mix": "equal", "judge_model": "svm"}  # what argparse has for a flag not given
    for name in (*only_codes, "mix", "codes", "model", "judge", "judge_model"):
        if getattr(arguments, name) not in (None, False, meant_otherwise.get(name)):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is for priors over codes; accepted for a VAE: --temperature and --seed")
    if arguments.interpolate is not None:
        check_integer(1, interpolate=arguments.interpolate)
    kind = kind_of_run(layout)
    if len(arguments.temperature) > 1:
        raise ValueError("temperature is of several levels; accepted for a VAE: one number")
    check_room(arguments.count, arguments.count, model.in_channels * math.prod(model.image_size))
    folder = check_output(arguments.out or layout.samples, layout.folder, folder=True)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    with made_of(folder, layout):
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        for start in range(0, arguments.count, AT_ONCE):
            count = min(AT_ONCE, arguments.count - start)
            drawn = model.sample(count, temperature=arguments.temperature[0], generator=generator)
            parts.append((drawn[0].clamp(-0.5, 0.5).cpu(), drawn[1].cpu()))
        images, latents = (torch.cat(part) for part in zip(*parts, strict=True))
        columns = min(arguments.count, 2 * kind.columns)
        path = save_image(grid(kind.pictures(images), columns), folder / "samples.png")
        np.savez(folder / "latents.npz", latents=latents.numpy())
        print(f"{arguments.count} samples in {path}")
        if kind.has_files:
            write_samples(kind, images, folder, [])
            print(f"the same as files in {folder / kind.items}")
        if arguments.interpolate is None:
            return
        _, data = open_run(layout.folder, device=device, progress=True)
        model.check_size(data)
        rows = some_rows(len(data.test), min(len(data.test), 2 * arguments.interpolate))
        x = to_float(data.test.batch(rows).to(device))
        pairs = len(x) // 2
        between = model.interpolate(x[:pairs], x[pairs : 2 * pairs], STEPS)  # [pairs, STEPS, C, H, W]
        ends = (x[:pairs].unsqueeze(1), between, x[pairs : 2 * pairs].unsqueeze(1))
        shown = torch.cat(ends, dim=1).flatten(0, 1).cpu().clamp(-0.5, 0.5)
        path = save_image(grid(kind.pictures(shown), columns=STEPS + 2), folder / "interpolation.png")
        print(f"{pairs} rows between two test {kind.items}, which stand at the ends, in {path}")


def write_samples(kind: Kind, samples: Tensor, folder: Path, classes: Sequence[str]) -> None:
    """Write each of ``samples`` into its own file in a folder of ``folder``, called by number and class.

    classes: names of the classes, each of which has the same number of samples, one after the other; none for
    samples without a class.
    """
    names = [f"{number:06d}" for number in range(len(samples))]
    if classes:
        each = len(samples) // len(classes)
        names = [f"{name}-{classes[number // each]}" for number, name in enumerate(names)]
    kind.write_all(samples, folder / kind.items, names)
