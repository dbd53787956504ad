"""Variance, evaluation and encoding take memory that does not grow with the number of images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
# The peak of a process holds torch's memory too, whose allocator takes two passes to settle. Images come from
# a data set that makes each when it is asked for.
PROGRAM = """
import resource, sys

import numpy as np
import torch

from models import VQVAE, encode, evaluate
from models.data import DataConfig
from models.data.given import as_image_data

class Made(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, row):
        return np.random.default_rng(row).integers(0, 256, (3, 32, 32), dtype=np.uint8), row % 3

def peak_after(count):
    data = as_image_data(Made(count), DataConfig())
    torch.manual_seed(0)
    model = VQVAE(3, hidden=8, residual_hidden=4, embedding_dim=4, codebook_size=16, downscale=4)
    assert data.variance > 0
    evaluate(model, data, split="train")
    encode(model, data, f"{sys.argv[1]}/{count}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

peak_after(700)
few = peak_after(900)
print(peak_after(4900) - few)
"""


# What is freed goes back to the system at once. The peak is otherwise 3 to 18 MiB higher, as the batches that
# a thread reads ahead come early or late.
ALLOCATION = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def test_many_times_the_images_take_no_more_memory(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment |= ALLOCATION
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # MiB. The further images are 12 as bytes and 47 as floats, and their hashes and labels 4.
    assert float(done.stdout.split()[-1]) < 9
