"""What ``make gpu-check`` asks of a backend on a CUDA GPU, one function a question.

A check returns a word on what it saw, raises AssertionError where the answer is wrong, and raises
``NotHere`` where this machine cannot be asked. ``python -m benchmarks.gpu.checks BACKEND`` calls every
operation once on small inputs: the program that compute-sanitizer watches.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import vq_kernels as vq

from ..launches import device_activities
from ..machine import ROOT
from .models import from_data_to_samples

MOST_LAUNCHES = 6  # in a training step of the layer
DEVICE = "cuda"
SIZES = ((2**17, 64, 1024), (2**15, 256, 4096), (2**17, 8, 128), (40_003, 100, 777))  # N, D, K
Check = Callable[[str], str]


class NotHere(RuntimeError):
    """This machine cannot be asked; the text says why."""


def make(n: int, d: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Rows and a codebook, from a generator of their own."""
    generator = torch.Generator(DEVICE).manual_seed(n + 31 * d + 7 * k)
    x = torch.randn(n, d, device=DEVICE, generator=generator).to(dtype)
    return x, torch.randn(k, d, device=DEVICE, generator=generator)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


# --- results --------------------------------------------------------------------------------------------


def agrees_with_reference(backend: str) -> str:
    """Larger than the tests: the exact indices of the reference, sums and losses to rounding."""
    rows = 0
    for n, d, k in SIZES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, codebook = make(n, d, k, dtype)
            want = vq.vector_quantize(x, codebook, backend="reference")
            got = vq.vector_quantize(x, codebook, backend=backend)
            wrong = int((got.indices != want.indices).sum())
            assert wrong == 0, f"{wrong} of {n} indices differ at D={d}, K={k}, {dtype}"
            assert torch.equal(got.quantized, want.quantized)
            assert torch.equal(got.counts, want.counts)
            torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=0.0)
            torch.testing.assert_close(got.sums, want.sums, rtol=1e-4, atol=1e-3)
            rows += n
    return f"{rows} rows, every index equal"


def is_reproducible(backend: str) -> str:
    """Five runs, bit for bit."""
    x, codebook = make(100_003, 64, 300)
    first = vq.vector_quantize(x, codebook, backend=backend)
    for _ in range(4):
        assert same(first, vq.vector_quantize(x, codebook, backend=backend)), "two runs differ"
    return "five runs equal"


def addresses_beyond_32_bits(backend: str) -> str:
    """N D above 2^31 elements: the last rows come out as they do alone."""
    n, d, k = 2**25 + 3, 64, 16
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * n * d:
        raise NotHere(f"needs {6 * n * d / 2**30:.0f} GiB of free memory, {free / 2**30:.0f} are")
    x = torch.zeros(n, d, device=DEVICE, dtype=torch.bfloat16)
    tail, codebook = make(1000, d, k, torch.bfloat16)
    x[-1000:] = tail
    got = vq.vector_quantize(x, codebook, backend=backend)
    want = vq.vector_quantize(tail, codebook, backend=backend)
    assert torch.equal(got.indices[-1000:], want.indices), "indices of the last rows"
    assert torch.equal(got.quantized[-1000:], want.quantized), "last quantized rows"
    assert int(got.counts.sum()) == n, "rows counted"
    return f"N D = 2^{(n * d).bit_length() - 1}"


# --- streams and devices --------------------------------------------------------------------------------


def works_on_another_stream(backend: str) -> str:
    """Input made late on a stream of its own: work on any other stream would read what was there before."""
    x, codebook = make(20_011, 64, 128)
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


def works_on_two_streams(backend: str) -> str:
    """Two streams at once, each with its own scratch memory."""
    inputs = [make(30_000 + i, 64, 256 + i) for i in range(2)]
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


def works_on_a_second_device(backend: str) -> str:
    """Tensors on cuda:1 while cuda:0 is current."""
    if torch.cuda.device_count() < 2:
        raise NotHere("one GPU")
    x, codebook = make(10_000, 64, 128)
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


def captures_in_a_graph(backend: str) -> str:
    """A training step of the layer as one CUDA graph, replayed on new input, equals the eager step."""
    for rotation in (False, True):
        eager = vq.FusedVectorQuantizer(64, 512, rotation_trick=rotation, backend=backend).to(DEVICE)
        x, _ = make(16_384, 64, 1)
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
            fresh, _ = make(16_384, 64, 2 + i)
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


def takes_few_launches(backend: str) -> str:
    """Device activities of a training step, counted by the profiler."""
    layer = vq.FusedVectorQuantizer(64, 512, backend=backend).to(DEVICE)
    x, _ = make(2**16, 64, 1)
    x.requires_grad_()
    grad, one = torch.randn_like(x), torch.ones((), device=DEVICE)

    def step() -> None:
        x.grad = None
        quantized, _, loss = layer(x)
        torch.autograd.backward([quantized, loss], [grad, one])

    try:
        names = device_activities(step)
    except RuntimeError as error:
        raise NotHere(str(error)) from error
    short = [re.sub(r"[<(].*", "", name.removeprefix("void "))[:40] for name in names]
    assert len(names) <= MOST_LAUNCHES, f"{len(names)} launches: {', '.join(short)}"
    return f"{len(names)}: {', '.join(short)}"


# --- compute-sanitizer ----------------------------------------------------------------------------------


def call_everything(backend: str) -> None:
    """Every operation once for each kind of kernel, small."""
    for d in (3, 24, 100):
        for dtype in (torch.float32, torch.bfloat16):
            x, codebook = make(200, d, 70, dtype)
            codebook[40:] = codebook[:30]  # ties, so that rows are scored again
            x.requires_grad_()
            got = vq.vector_quantize(x, codebook, gradient="rotation_trick", backend=backend)
            (got.quantized.float().sum() + got.loss).backward()
            first = x.detach().T.contiguous()[None].requires_grad_()
            got = vq.vector_quantize(first, codebook, channel_dim=1, backend=backend)
            (got.quantized.float().sum() + got.loss).backward()
            average, size = torch.randn_like(codebook), torch.rand(70, device=DEVICE)
            vq.ema_update_(
                codebook, size, average, got.counts, got.sums, decay=0.9, eps=1e-5, backend=backend
            )
            vq.code_statistics(x.detach(), got.indices[0], 70, backend=backend)
            vq.gather_codes(codebook, got.indices, channel_dim=1, backend=backend)
    torch.cuda.synchronize()


def passes_sanitizer(tool: str, backend: str, seconds: float = 100.0) -> str:
    """No error reported by a tool of compute-sanitizer; for our CUDA kernels it looks at them alone."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        raise NotHere("compute-sanitizer is not installed")
    only = ["--kernel-regex", "kns=vq_cuda"] if backend == "cuda" else []
    command = [program, "--tool", tool, "--error-exitcode", "9", *only, sys.executable]
    command += ["-m", "benchmarks.gpu.checks", backend]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"did not end within {seconds:.0f} seconds") from error
    output = done.stdout + done.stderr
    if re.search(r"[Dd]evice not supported|[Uu]nable to|Target application terminated before", output):
        raise NotHere(next(line for line in output.splitlines() if line.startswith("=========")).strip("= "))
    summary = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
    assert done.returncode == 0, "\n".join([*summary, output[-2000:]])
    return summary[-1] if summary else "no summary"


CHECKS: dict[str, Check] = {
    "equals the reference": agrees_with_reference,
    "reproducible": is_reproducible,
    "64-bit addresses": addresses_beyond_32_bits,
    "non-default stream": works_on_another_stream,
    "two streams": works_on_two_streams,
    "second device": works_on_a_second_device,
    "CUDA graph of a training step": captures_in_a_graph,
    f"at most {MOST_LAUNCHES} launches a step": takes_few_launches,
    "models, data to samples": lambda backend: from_data_to_samples(backend, DEVICE),
}
SANITIZERS = ("memcheck", "racecheck")

if __name__ == "__main__":
    call_everything(sys.argv[1])
