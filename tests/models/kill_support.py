"""Training runs that are killed at random moments and resumed, each attempt in a fork of one process.

As a script: ``kill_support.py FOLDER KIND CHANGES KILLS SEED`` trains ``FOLDER/whole`` undisturbed and
``FOLDER/killed`` with KILLS random kills. A fork costs milliseconds where a new process imports for seconds;
it is safe because this process runs no other thread. Moments are in processor time of the attempt, whatever
else the machine does: a timer sends SIGPROF, which ends a process on the spot, as SIGKILL does.
"""

from __future__ import annotations

import ast
import os
import random
import signal
import sys
from pathlib import Path

import torch
from training_support import SMALL, settings

from models.codes.encode import encode
from models.data import DataConfig, load_data
from models.runs.config import PriorConfig
from models.training.autoencoder import train
from models.training.checkpoints import LastCheckpoint
from models.training.prior import train_prior


def attempt(
    kind: str, folder: Path, name: str, changes: dict, data, store, resume: bool, limit: float | None
) -> tuple[int, float]:
    """Exit status and processor time of a process that trains or goes on, ``limit`` of it after its start."""
    child = os.fork()
    if child:
        _, status, usage = os.wait4(child, 0)
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    original = LastCheckpoint.on_train_start

    def begin(self: LastCheckpoint, *arguments: object) -> None:
        original(self, *arguments)
        if limit is not None:
            signal.setitimer(signal.ITIMER_PROF, limit)

    LastCheckpoint.on_train_start = begin
    try:
        if kind == "train":
            train(settings(folder, name=name, **changes), data, resume=resume)
        else:
            loop = {
                key: SMALL[key] for key in ("batch_size", "epochs", "log_every", "progress", "accelerator")
            }
            prior = {"width": 8, "layers": 1, "heads": 2, "codes": str(store.folder), "checkpoint_every": 3}
            train_prior(
                PriorConfig(**{"runs": str(folder), "name": name, **loop, **prior, **changes}),
                store,
                resume=resume,
            )
    except BaseException as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main() -> None:
    folder, kind, changes = Path(sys.argv[1]), sys.argv[2], ast.literal_eval(sys.argv[3])
    kills, draw = int(sys.argv[4]), random.Random(int(sys.argv[5]))
    torch.set_num_threads(1)
    data = load_data(DataConfig(data="digits", limit=250))
    store = None
    if kind == "train-prior":
        from models import VQVAE

        torch.manual_seed(0)
        model = VQVAE(1, downscale=2, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=16)
        store = encode(model, data, folder / "codes")
    status, whole = attempt(kind, folder, "whole", changes, data, store, False, None)
    if status:
        sys.exit("the undisturbed run failed")
    killed = 0
    while True:
        resume = (folder / "killed" / "config.yaml").is_file()
        limit = whole * draw.uniform(0.0, 0.4) if killed < kills else None
        status, _ = attempt(kind, folder, "killed", changes, data, store, resume, limit)
        if status == 0:
            break
        if status != -signal.SIGPROF:
            sys.exit(f"an attempt after {killed} kills failed")
        killed += 1
    print(f"{killed} kills")


if __name__ == "__main__":
    main()
