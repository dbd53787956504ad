"""``evaluate``: every figure of a trained run, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models.cli.flags import add_command, add_model_flags, check_output, given_settings, opened_config
from models.data.settings import DataConfig
from models.files import write_whole
from models.runs.config import TrainConfig
from models.runs.layout import RunLayout
from models.runs.open import open_priors, open_run


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "measure a trained run",
        "Measure every figure of a trained run, as a table and as JSON.",
        [
            "runs/demo",
            "runs/demo --prior runs/demo-prior --split validation",
        ],
    )
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
    from models.runs.measured import keep_figures
    from models.runs.priors import check_classes, check_prior_of
    from models.runs.provenance import provenance

    layout = RunLayout(Path(arguments.run_folder))
    own = layout.evaluation(arguments.split)
    path = check_output(arguments.out or own, layout.folder, replaces=[own])
    stored, config = opened_config(arguments)
    if not arguments.out:
        _check_same_data(stored, config, list(given_settings(arguments, DataConfig)), path)
    device = find_device(arguments.device)
    priors = open_priors(arguments.prior, device) if arguments.prior else []
    if priors:
        check_prior_of(arguments.prior, layout.folder)
    model, data = open_run(layout.folder, config, device, progress=True)
    print(data.describe(), flush=True)
    if priors:
        check_classes(arguments.prior, priors, data.name, data.class_names)
    is_uncalibrated = uncalibrated(model) is not None
    result = evaluate(
        model,
        data,
        split=arguments.split,
        priors=priors,
        batch_size=arguments.batch_size,
        device=device,
        fid_weights=arguments.fid_weights,
        progress=True,
    )
    origin = provenance(layout.folder, data, arguments.split, arguments.prior) | {
        "fid_weights": arguments.fid_weights,
        "likelihood_calibrated_for_this": is_uncalibrated,
    }
    result, origin, kept = keep_figures(path, result, origin)
    write_whole(path, json.dumps(result | {"of": origin}, indent=2) + "\n")
    print(as_table(result) + f"\n\nwritten to {path}" + (f"\n{kept}" if kept else ""))
    if is_uncalibrated:
        print(
            "the fixed variance of this model's likelihood was never calibrated: these bits are of the "
            "squared error on the validation split"
        )


def _check_same_data(stored: TrainConfig, config: TrainConfig, names: list[str], path: Path) -> None:
    """ValueError where a flag of ``names`` gives other images or labels than those of the run."""
    for name in names:
        value = getattr(config, name)
        if name not in ("cache_gb", "cache_dir") and value != getattr(stored, name):
            raise ValueError(
                f"{name} is {value}, which is not that of the run, whose figures {path} holds; name another "
                f"file (--out FILE)"
            )
