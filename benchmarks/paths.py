"""The paths of an exact search on the CPU: instruction sets and the passes that it may begin with."""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from vq_kernels.backends import marshal, native

# name -> VQ_ISA and VQ_FIRST_PASS
PATHS = {
    "portable": ("portable", "float32"),
    "neon": ("neon", "float32"),
    "dotprod": ("dotprod", "int8"),
    "i8mm": ("i8mm", "int8"),
    "avx2": ("avx2", "float32"),
    "avx2 int8": ("avx2", "int8"),
    "avx2 int16": ("avx2", "int16"),
    "avxvnni": ("avxvnni", "int8"),
    "avx512": ("avx512", "float32"),
    "avx512vnni": ("avx512vnni", "int8"),
    "avx512bf16": ("avx512bf16", "bfloat16"),
    "avx512bf16 int8": ("avx512bf16", "int8"),
    "amxint8": ("amxint8", "int8"),
    "amx": ("amx", "bfloat16"),
    "portable direct": ("portable", "direct"),
    "neon direct": ("neon", "direct"),
    "avx2 direct": ("avx2", "direct"),
    "avx512 direct": ("avx512", "direct"),
}


def usable_paths() -> list[str]:
    """The paths whose instruction sets are compiled in and on this machine."""
    features = native.cpu_features()
    return [p for p, (isa, _) in PATHS.items() if isa in features["machine"] and isa in features["compiled"]]


def on_path(path: str) -> AbstractContextManager[object]:
    """Searches inside take one of ``PATHS``, whatever the environment says."""
    return mock.patch.dict(os.environ, zip(("VQ_ISA", "VQ_FIRST_PASS"), PATHS[path], strict=True))


def nearest_code_with_bound(x: Tensor, codebook: Tensor, metric: str, bound_scale: float) -> Tensor:
    """``native.nearest_code`` in exact precision with its error bounds multiplied by ``bound_scale``."""
    module = importlib.import_module("vq_kernels._C")
    indices = torch.empty(x.shape[:2], dtype=torch.int64)
    options = marshal.search_options(metric, "exact", bound_scale)
    threads = torch.get_num_threads()
    codes = marshal.codes(codebook)
    module.nearest_code(marshal.rows(x), codes, None, options, threads, indices.data_ptr())
    return indices
