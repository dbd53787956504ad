"""``evaluate``: every figure of a trained run, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models.cli.options import add_model_flags, check_output, open_priors, open_run


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure a trained run", description=__doc__)
    add_model_flags(parser)
    parser.add_argument("--split", default="test", help="train, validation or test (test)")
    parser.add_argument("--prior", help="folder of a train-prior run, for bits per dimension")
    parser.add_argument("--fid-weights", help="TorchScript feature network, for rFID")
    parser.add_argument("--out", help="JSON file (RUN/evaluation-SPLIT.json)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from models.cli.priors import check_classes, check_prior_of
    from models.device import find_device
    from models.evaluate import as_table, evaluate

    path = check_output(arguments.out or Path(arguments.run_folder) / f"evaluation-{arguments.split}.json")
    device = find_device(arguments.device)
    priors = open_priors(arguments.prior, device) if arguments.prior else []
    if priors:
        check_prior_of(arguments.prior, arguments.run_folder)
    _, model, data = open_run(arguments)
    if priors:
        check_classes(arguments.prior, priors, data.name, data.class_names)
    result = evaluate(
        model,
        data,
        split=arguments.split,
        priors=priors,
        batch_size=arguments.batch_size,
        device=device,
        fid_weights=arguments.fid_weights,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(as_table(result) + f"\n\nwritten to {path}")
