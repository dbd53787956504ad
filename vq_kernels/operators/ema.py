"""``vq_kernels::ema_update_``: one moving-average step of a codebook, in place."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose
from ..devices import current_device_of
from ..tensor_checks import check_no_overlap
from .registry import operator


def _fake(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    normalize: bool,
    backend: str | None,
) -> None:
    return None


@operator(
    "ema_update_(Tensor(a!) codebook, Tensor(b!) cluster_size, Tensor(c!) embed_avg, Tensor counts,"
    " Tensor sums, float decay, float eps, bool normalize, str? backend) -> ()",
    _fake,
)
def ema_update_(
    codebook: Tensor,
    cluster_size: Tensor,
    embed_avg: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    eps: float,
    normalize: bool,
    backend: str | None,
) -> None:
    """Writes to its first three arguments; see :func:`vq_kernels.ema_update_`."""
    check_no_overlap(
        {"codebook": codebook, "cluster_size": cluster_size, "embed_avg": embed_avg},
        {"counts": counts, "sums": sums},
    )
    chosen = choose("ema_update_", backend, codebook)
    with current_device_of(codebook):
        chosen.ema_update_(
            codebook, cluster_size, embed_avg, counts.contiguous(), sums.contiguous(), decay, eps, normalize
        )
