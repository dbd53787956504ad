"""What ``make gpu-check`` asks of a backend on a CUDA GPU, one function a question.

A check returns a word on what it saw, raises AssertionError where the answer is wrong, and raises
``NotHere`` where this machine cannot be asked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import torch
from torch import Tensor

import vq_kernels as vq

from ..launches import device_activities
from .cases import compare_quantized
from .faults import NotHere
from .models import from_data_to_samples
from .target import Target

MOST_LAUNCHES = {"triton": 6, "cuda": 7}  # in a training step of the layer
WEIGHTS = (1.0, 0.25)  # commitment weights whose launches are counted
SIZES = ((2**17, 64, 1024), (2**15, 256, 4096), (2**17, 8, 128), (40_003, 100, 777))  # N, D, K
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TINY_SIZES = ((70, 20, 33),)
TINY_DTYPES = (
    torch.float32,
    torch.float16,
)  # the interpreter of Triton cuts bfloat16 off, which is no rounding
Check = Callable[[str, Target], str]


def make(target: Target, n: int, d: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows ``[N, D]`` and a codebook ``[K, D]``, from a generator of their own."""
    generator = torch.Generator(target.device).manual_seed(n + 31 * d + 7 * k)
    x = torch.randn(n, d, device=target.device, generator=generator).to(dtype)
    return x, torch.randn(k, d, device=target.device, generator=generator)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def require_gpu(target: Target) -> None:
    """Raises NotHere in a rehearsal, which has no streams, graphs or device memory."""
    if target.is_rehearsal:
        raise NotHere("a rehearsal has no GPU")


# --- results --------------------------------------------------------------------------------------------


def agrees_with_reference(backend: str, target: Target) -> str:
    """Larger than the tests: the exact indices of the reference, sums and losses to rounding."""
    rows = 0
    sizes, dtypes = target.choose((SIZES, DTYPES), (TINY_SIZES, TINY_DTYPES))
    for n, d, k in sizes:
        for dtype in dtypes:
            x, codebook = make(target, n, d, k, dtype)
            want = vq.vector_quantize(x, codebook, backend="reference")
            got = vq.vector_quantize(x, codebook, backend=backend)
            try:
                compare_quantized(got, want)
            except AssertionError as error:
                raise AssertionError(f"D={d}, K={k}, {dtype}: {error}") from error
            rows += n
    return f"{rows} rows, every index equal"


def is_reproducible(backend: str, target: Target) -> str:
    """Several runs, bit for bit."""
    x, codebook = make(target, *target.choose((100_003, 64, 300), (37, 20, 30)))
    first = vq.vector_quantize(x, codebook, backend=backend)
    for _ in range(target.choose(4, 1)):
        assert same(first, vq.vector_quantize(x, codebook, backend=backend)), "two runs differ"
    return "all runs equal"


def addresses_beyond_32_bits(backend: str, target: Target) -> str:
    """N D above 2^31 elements: the last rows come out as they do alone."""
    require_gpu(target)
    n, d, k = 2**25 + 3, 64, 16
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * n * d:
        raise NotHere(f"needs {6 * n * d / 2**30:.0f} GiB of free memory, {free / 2**30:.0f} are")
    x = torch.zeros(n, d, device=target.device, dtype=torch.bfloat16)
    tail, codebook = make(target, 1000, d, k, torch.bfloat16)
    x[-1000:] = tail
    got = vq.vector_quantize(x, codebook, backend=backend)
    want = vq.vector_quantize(tail, codebook, backend=backend)
    assert torch.equal(got.indices[-1000:], want.indices), "indices of the last rows"
    assert torch.equal(got.quantized[-1000:], want.quantized), "last quantized rows"
    assert int(got.counts.sum()) == n, "rows counted"
    return f"N D = 2^{(n * d).bit_length() - 1}"


# --- streams and devices --------------------------------------------------------------------------------


def works_on_another_stream(backend: str, target: Target) -> str:
    """Input made late on a stream of its own: work on any other stream would read what was there before."""
    require_gpu(target)
    x, codebook = make(target, 20_011, 64, 128)
    want = vq.vector_quantize(x, codebook, backend=backend)
    late = torch.full_like(x, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        got = vq.vector_quantize(late, codebook, backend=backend)
    stream.synchronize()
    assert same(got, want), "results differ on a non-default stream"
    return "equal"


def works_on_two_streams(backend: str, target: Target) -> str:
    """Two streams at once, each with its own scratch memory."""
    require_gpu(target)
    inputs = [make(target, 30_000 + i, 64, 256 + i) for i in range(2)]
    want = [vq.vector_quantize(*pair, backend=backend) for pair in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    got: list[list[tuple[Tensor, ...]]] = [[], []]
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i].append(vq.vector_quantize(*inputs[i], backend=backend))
    torch.cuda.synchronize()
    for i in range(2):
        assert all(same(result, want[i]) for result in got[i]), f"results differ on stream {i}"
    return "20 calls equal"


def works_on_a_second_device(backend: str, target: Target) -> str:
    """Tensors on cuda:1 while cuda:0 is current."""
    require_gpu(target)
    if torch.cuda.device_count() < 2:
        raise NotHere("one GPU")
    x, codebook = make(target, 10_000, 64, 128)
    want = vq.vector_quantize(x, codebook, backend=backend)
    got = vq.vector_quantize(x.to("cuda:1"), codebook.to("cuda:1"), backend=backend)
    assert same(tuple(t.to("cuda:0") for t in got), want), "results differ on the second device"
    assert torch.cuda.current_device() == 0, "the current device was changed"
    return "equal"


# --- the layer --------------------------------------------------------------------------------------------


def training_step(layer: torch.nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Forward, backward and the codebook's update. Returns the results and x's gradient."""
    x.grad = None
    quantized, indices, loss = layer(x)
    torch.autograd.backward([quantized, loss], [grad, torch.ones((), device=x.device)])
    assert x.grad is not None
    return quantized.detach(), indices, loss.detach(), x.grad


def captures_in_a_graph(backend: str, target: Target) -> str:
    """A training step of the layer as one CUDA graph, replayed on new input, equals the eager step."""
    require_gpu(target)
    for rotation in (False, True):
        eager = vq.FusedVectorQuantizer(64, 512, rotation_trick=rotation, backend=backend).to(target.device)
        x, _ = make(target, 16_384, 64, 1)
        x.requires_grad_()
        grad = torch.randn_like(x)
        training_step(eager, x, grad)
        recorded = copy.deepcopy(eager)
        start = copy.deepcopy(eager.state_dict())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                training_step(recorded, x, grad)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = training_step(recorded, x, grad)
        recorded.load_state_dict(start)
        for i in range(3):
            fresh, _ = make(target, 16_384, 64, 2 + i)
            with torch.no_grad():
                x.copy_(fresh)
            graph.replay()
            replayed = tuple(t.clone() for t in results)
            want = training_step(eager, fresh.requires_grad_(), grad)
            assert same(replayed, want), f"step {i} differs from eager, rotation_trick={rotation}"
            ours, theirs = recorded.state_dict(), eager.state_dict()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours), (
                f"state differs after step {i}"
            )
    return "3 replays equal, both gradients"


def takes_few_launches(backend: str, target: Target) -> str:
    """Device activities of a training step, counted by the profiler, whatever the commitment weight."""
    require_gpu(target)
    said = []
    for weight in WEIGHTS:
        layer = vq.FusedVectorQuantizer(64, 512, commitment_weight=weight, backend=backend).to(target.device)
        x, _ = make(target, 2**16, 64, 1)
        x.requires_grad_()
        grad, one = torch.randn_like(x), torch.ones((), device=target.device)

        def step(
            layer: torch.nn.Module = layer, x: Tensor = x, grad: Tensor = grad, one: Tensor = one
        ) -> None:
            x.grad = None
            quantized, _, loss = layer(x)
            torch.autograd.backward([quantized, loss], [grad, one])

        try:
            names = device_activities(step)
        except RuntimeError as error:
            raise NotHere(str(error)) from error
        short = [re.sub(r"[<(].*", "", name.removeprefix("void "))[:40] for name in names]
        said.append(f"weight {weight:g}: {len(names)}: {', '.join(short)}")
        assert len(names) <= MOST_LAUNCHES[backend], said[-1]
    return "; ".join(said)


CHECKS: dict[str, dict[str, Check]] = {
    "reference": {"equals the reference": agrees_with_reference},
    "results": {
        "reproducible": is_reproducible,
        "64-bit addresses": addresses_beyond_32_bits,
    },
    "streams": {
        "non-default stream": works_on_another_stream,
        "two streams": works_on_two_streams,
        "second device": works_on_a_second_device,
    },
    "graph": {
        "CUDA graph of a training step": captures_in_a_graph,
        "launches of a step": takes_few_launches,
    },
    "models": {
        "models, data to samples": lambda backend, target: from_data_to_samples(backend, target.device)
    },
}
