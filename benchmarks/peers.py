"""Other people's nearest-code searches, each as a call ready to be timed.

A peer takes ``x`` ``[N, D]`` and ``codebook`` ``[K, D]``, does once what its users do once (build an
index, compile), and returns a call that gives ``[N]`` integer indices.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .agreement import BFLOAT16, TF32
from .measure import timer_for

Search = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """A search by another library or by plain PyTorch.

    ``reason`` says why it cannot be measured here (None: it can). ``input_unit`` and ``output_unit``
    are the roundings below float32 that it uses, by dtype of x (see ``agreement.rounding``).
    """

    name: str
    prepare: Callable[[Tensor, Tensor], Search]
    reason: str | None = None
    input_unit: float = 0.0
    output_unit: float = 0.0


# --- plain PyTorch --------------------------------------------------------------------------------


def cdist_argmin(x: Tensor, codebook: Tensor) -> Search:
    """``torch.cdist`` and ``argmin``: the N x K matrix of distances."""
    return lambda: torch.cdist(x, codebook).argmin(-1)


def _half_norms(codebook: Tensor) -> Tensor:
    return codebook.float().square().sum(-1).mul_(0.5).to(codebook.dtype)  # [K]


def _nearest_of_chunk(rows: Tensor, codebook_t: Tensor, half_norms: Tensor) -> Tensor:
    """argmin of |e|^2 / 2 - x.e: rows ``[R, D]``, codebook_t ``[D, K]`` -> ``[R]``."""
    return torch.addmm(half_norms, rows, codebook_t, alpha=-1).argmin(-1)


def _best_chunks(x: Tensor, codebook: Tensor) -> tuple[Tensor, ...]:
    """x in chunks of the length that is fastest here, of those whose scores fill some round sizes.

    On the CPU 1 to 16 MiB, about the L2 caches; on a GPU 64 MiB to 1 GiB.
    """
    key = (x.shape, codebook.shape, x.dtype, x.device.type)
    if key not in _chunk_rows:
        sizes = (26, 28, 30) if x.is_cuda else (20, 22, 23, 24)
        rows = [max(16, 2**size // (codebook.element_size() * len(codebook))) for size in sizes]
        codebook_t, half_norms, timer = codebook.t(), _half_norms(codebook), timer_for(x.device.type)
        times = []
        for length in rows:
            search = _in_chunks(_nearest_of_chunk, x.split(length), codebook_t, half_norms)
            search()
            times.append(timer.sample(search, 1))
        _chunk_rows[key] = rows[times.index(min(times))]
    return x.split(_chunk_rows[key])


_chunk_rows: dict[object, int] = {}


def _in_chunks(
    nearest: Callable[[Tensor, Tensor, Tensor], Tensor],
    chunks: tuple[Tensor, ...],
    codebook_t: Tensor,
    half_norms: Tensor,
) -> Search:
    return lambda: torch.cat([nearest(rows, codebook_t, half_norms) for rows in chunks])


def chunked_matmul(x: Tensor, codebook: Tensor) -> Search:
    """Scores by matrix product, some rows at a time."""
    return _in_chunks(_nearest_of_chunk, _best_chunks(x, codebook), codebook.t(), _half_norms(codebook))


def compiled_cdist(x: Tensor, codebook: Tensor) -> Search:
    """``torch.compile`` of cdist and argmin."""
    compiled = torch.compile(lambda a, b: torch.cdist(a, b).argmin(-1), dynamic=False)
    return lambda: compiled(x, codebook)


def compiled_matmul(x: Tensor, codebook: Tensor) -> Search:
    """``torch.compile`` of one chunk of the chunked product; the loop over chunks stays outside."""
    compiled = torch.compile(_nearest_of_chunk, dynamic=False)
    return _in_chunks(compiled, _best_chunks(x, codebook), codebook.t(), _half_norms(codebook))


# --- libraries ------------------------------------------------------------------------------------


def faiss_flat(x: Tensor, codebook: Tensor) -> Search:
    """faiss-cpu ``IndexFlatL2``, the index built beforehand."""
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.float().numpy())
    rows = x.float().numpy()
    return lambda: torch.from_numpy(index.search(rows, 1)[1][:, 0])


def flash_kmeans(x: Tensor, codebook: Tensor) -> Search:
    """flash-kmeans' Triton assignment; |x|^2 and |e|^2 computed beforehand, as its k-means does for x."""
    assign = importlib.import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    rows, codes = x[None], codebook[None]
    x_sq = rows.float().square().sum(-1)
    c_sq = codes.float().square().sum(-1)
    return lambda: assign(rows, codes, x_sq, c_sq=c_sq)[0]


def flashlib_triton(x: Tensor, codebook: Tensor) -> Search:
    """flashlib's Triton assignment."""
    assign = importlib.import_module("flashlib.primitives.kmeans").euclid_assign_triton
    rows, codes = x[None], codebook[None]
    c_sq = codes.float().square().sum(-1)
    return lambda: assign(rows, codes, c_sq=c_sq)[0]


def flashlib_cute(x: Tensor, codebook: Tensor) -> Search:
    """flashlib's CuTe DSL assignment for Hopper, its static choice of tiles (its search takes minutes)."""
    assign = importlib.import_module("flashlib.primitives.kmeans.cutedsl").cutedsl_assign_euclid
    rows, codes = x[None], codebook[None]
    c_sq = codes.float().square().sum(-1)
    return lambda: assign(rows, codes, c_sq=c_sq, autotune=False)[0]


def cuvs_brute_force(x: Tensor, codebook: Tensor) -> Search:
    """cuVS brute force with k = 1, the index built beforehand, on torch's current stream."""
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    resources = importlib.import_module("cuvs.common").Resources(
        stream=torch.cuda.current_stream().cuda_stream
    )
    index = brute_force.build(codebook, metric="sqeuclidean", resources=resources)
    neighbors = torch.empty(len(x), 1, dtype=torch.int64, device=x.device)
    distances = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)

    def search() -> Tensor:
        brute_force.search(index, x, 1, neighbors=neighbors, distances=distances, resources=resources)
        return neighbors[:, 0]

    return search


def import_reason(module: str) -> str | None:
    """None if the module can be imported, else why not, in one sentence."""
    try:
        importlib.import_module(module)
    except Exception as error:  # some look for a GPU while they are imported
        return f"{module} cannot be imported here: {type(error).__name__}: {error}".splitlines()[0]
    return None


def settle_square_root() -> None:
    """Call it once in one thread, before a peer does in several.

    The first square root of a process can otherwise come out at 12 bits for one thread's rows, and with
    it wrong codes (pytorch/pytorch#188792).
    """
    torch.ones(1).sqrt()


def search_peers(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Peer]:
    """Every search to compare with on a device, with the reason for those that cannot run here."""
    settle_square_root()
    low = dtype != torch.float32
    # Scores and half the squared norms are both rounded to x's dtype.
    rounded: dict[str, Any] = {"output_unit": 2 * BFLOAT16 if low else 0.0}
    peers = [
        Peer("torch.cdist", cdist_argmin, "cdist takes float32 only on this device" if low else None),
        Peer("chunked matmul", chunked_matmul, **rounded),
        Peer("compiled cdist", compiled_cdist, "cdist takes float32 only on this device" if low else None),
        Peer("compiled matmul", compiled_matmul, **rounded),
    ]
    if device == "cpu":
        reason = "faiss takes float32 only" if low else import_reason("faiss")
        return [*peers, Peer("faiss-cpu", faiss_flat, reason)]
    tensor_core = {"input_unit": 0.0 if low else TF32}
    wide = "it takes 16-bit floats only" if not low else None
    return [
        *peers,
        Peer("flash-kmeans", flash_kmeans, import_reason("flash_kmeans.assign_euclid_triton"), **tensor_core),
        Peer("flashlib triton", flashlib_triton, import_reason("flashlib.primitives.kmeans"), **tensor_core),
        Peer(
            "flashlib cute",
            flashlib_cute,
            wide or import_reason("flashlib.primitives.kmeans.cutedsl") or import_reason("cutlass"),
        ),
        Peer(
            "cuVS",
            cuvs_brute_force,
            "it takes float32 and float16 only" if dtype == torch.bfloat16 else import_reason("cuvs"),
            **tensor_core,
        ),
    ]


# --- ours -----------------------------------------------------------------------------------------


def our_search(
    x: Tensor, codebook: Tensor, *, precision: str = "exact", backend: str | None = None
) -> Search:
    """This library's search, through its public interface."""
    nearest_code = importlib.import_module("vq_kernels").nearest_code
    return lambda: nearest_code(x, codebook, precision=precision, backend=backend)
