"""The layer of vector-quantize-pytorch and ours, side by side."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from vq_kernels.quantizers import FusedVectorQuantizer

Layers = tuple[VectorQuantize, FusedVectorQuantizer]
LEARNABLE: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}


def layers(dim: int = 8, size: int = 16, **options: Any) -> Layers:
    """Theirs and ours from one state, with codes of the size of the inputs."""
    theirs = VectorQuantize(dim, size, **options)
    if not options.get("kmeans_init"):
        with torch.no_grad():
            codes = torch.randn_like(theirs._codebook.embed)
            codes = F.normalize(codes, dim=-1) if options.get("use_cosine_sim") else codes
            theirs._codebook.embed.copy_(codes)
            theirs._codebook.embed_avg.copy_(codes)
    ours = FusedVectorQuantizer(dim, size, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def rows(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 11)), 8)
