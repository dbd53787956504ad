"""Training runs that are killed at random moments and resumed, each attempt in a fork of one process.

As a script: ``kill_support.py FOLDER KIND CHANGES KILLS SEED`` trains ``FOLDER/whole`` undisturbed and
``FOLDER/killed`` with KILLS random kills. A fork costs milliseconds where a new process imports for seconds;
it is safe because this process runs no other thread.
"""

from __future__ import annotations

import ast
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from training_support import SMALL, settings

from models.codes.encode import encode
from models.data import DataConfig, load_data
from models.runs.config import PriorConfig
from models.training.autoencoder import train
from models.training.checkpoints import LastCheckpoint
from models.training.prior import train_prior


def start(kind: str, folder: Path, name: str, changes: dict, data, store, resume: bool) -> int:
    """The id of a process that trains or goes on, once it has begun its first step or has ended."""
    began, begin = os.pipe()
    child = os.fork()
    if child:
        os.close(begin)
        os.read(began, 1)
        os.close(began)
        return child
    original = LastCheckpoint.on_train_start

    def announce(self: LastCheckpoint, *arguments: object) -> None:
        original(self, *arguments)
        os.close(begin)

    LastCheckpoint.on_train_start = announce
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
    child = start(kind, folder, "whole", changes, data, store, False)
    began = time.perf_counter()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit("the undisturbed run failed")
    whole = time.perf_counter() - began
    killed = 0
    while True:
        resume = (folder / "killed" / "config.yaml").is_file()
        child = start(kind, folder, "killed", changes, data, store, resume)
        if killed < kills:
            time.sleep(whole * draw.uniform(0.0, 0.4))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            break
        if status != -signal.SIGKILL:
            sys.exit(f"an attempt after {killed} kills failed")
        killed += 1
    print(f"{killed} kills")


if __name__ == "__main__":
    main()
