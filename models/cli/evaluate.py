"""``evaluate``: every figure of a trained run, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.cli.flags import (
    add_model_flags,
    check_output,
    given_settings,
    open_priors,
    open_run,
    prior_levels,
)
from models.data.settings import DataConfig
from models.runs.config import TrainConfig, read_yaml

if TYPE_CHECKING:
    from models.data import ImageData


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure a trained run", description=__doc__)
    add_model_flags(parser)
    parser.add_argument("--split", default="test", help="train, validation or test (test)")
    parser.add_argument("--prior", help="folder of a train-prior run, for bits per dimension")
    parser.add_argument("--fid-weights", help="TorchScript feature network, for rFID")
    parser.add_argument("--out", help="JSON file (RUN/evaluation-SPLIT.json; needed for other data)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.evaluation.calibration import uncalibrated
    from models.evaluation.evaluate import as_table, evaluate
    from models.runs.device import find_device
    from models.runs.priors import check_classes, check_prior_of

    path = check_output(arguments.out or Path(arguments.run_folder) / f"evaluation-{arguments.split}.json")
    changed = other_data(arguments)
    if changed and not arguments.out:
        raise ValueError(
            f"{changed} is not that of the run, whose figures {path} holds; name another file (--out FILE)"
        )
    device = find_device(arguments.device)
    priors = open_priors(arguments.prior, device) if arguments.prior else []
    if priors:
        check_prior_of(arguments.prior, arguments.run_folder)
    _, model, data = open_run(arguments)
    if priors:
        check_classes(arguments.prior, priors, data.name, data.class_names)
    calibrated_here = uncalibrated(model) is not None
    result = evaluate(
        model,
        data,
        split=arguments.split,
        priors=priors,
        batch_size=arguments.batch_size,
        device=device,
        fid_weights=arguments.fid_weights,
    )
    of = provenance(arguments, data) | {"likelihood_calibrated_for_this": calibrated_here}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | {"of": of}, indent=2) + "\n")
    print(as_table(result) + f"\n\nwritten to {path}")
    if calibrated_here:
        print(
            "the fixed variance of this model's likelihood was never calibrated: these bits are of the "
            "squared error on the validation split"
        )


def other_data(arguments: argparse.Namespace) -> str | None:
    """The first flag that gives other images or labels than those of the run, as ``limit 9``."""
    file = Path(arguments.run_folder) / "config.yaml"
    given = given_settings(arguments, DataConfig)
    if not given or not file.is_file():
        return None
    own = TrainConfig.load(file)
    now = TrainConfig.from_mapping(read_yaml(file) | given, "flags")
    names = [name for name in given if name not in ("cache_gb", "cache_dir")]
    differing = [name for name in names if getattr(own, name) != getattr(now, name)]
    return f"{differing[0]} {getattr(now, differing[0])}" if differing else None


def provenance(arguments: argparse.Namespace, data: ImageData) -> dict[str, Any]:
    """What the figures were measured on and of: images, model, priors and feature network."""
    from models.data.sources import location
    from models.pretrained import weights_hash

    return {
        "data": location(data.name),
        "settings": data.settings,
        "split": arguments.split,
        "images": len(data.split(arguments.split)),
        "variance": data.variance,
        "run": str(Path(arguments.run_folder).resolve()),
        "weights": weights_hash(Path(arguments.run_folder) / "model"),
        "prior": str(Path(arguments.prior).resolve()) if arguments.prior else None,
        "prior_weights": [weights_hash(level) for level in prior_levels(arguments.prior)]
        if arguments.prior
        else [],
        "fid_weights": arguments.fid_weights,
    }
