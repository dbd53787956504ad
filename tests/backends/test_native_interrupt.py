"""Ctrl-C in a long call of the native backend: it ends soon, with KeyboardInterrupt, and leaves state whole.

Each program runs in a process of its own, where a thread sends the signal into a call that would take twenty
seconds, and prints how much of the call was still done after it. All is processor time of the process, which
other work on the machine does not change much.
"""

from __future__ import annotations

import textwrap

import preloaded
import pytest
from native_support import ISAS, use_isa

from vq_kernels.backends import native

FULL = 20  # seconds of a call that is not interrupted
SOON = 0.15  # of them; a hundredth on a machine without other work

PROLOGUE = f"""
import os, signal, threading, time
import torch
import vq_kernels as vq
from vq_kernels.backends import native

# A shell that starts the tests in the background has them ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

def size_for(call, full={FULL}):
    # The size at which call(size) takes this many seconds, more than it takes at size 1.
    def seconds(size):
        begin = time.process_time()
        call(size)
        return time.process_time() - begin

    seconds(1)
    size, least, more = 1, seconds(1), 0.0
    while more < 0.2:
        size *= 2
        more = seconds(size) - least
    return int(size * full / more)

sent = []

def send_soon():
    # The signal, from another thread, once this one has worked for a while.
    begin = time.process_time()

    def send():
        while time.process_time() < begin + 0.15:
            time.sleep(0.01)
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()

def interrupt(call, *args):
    # Which part of a call that it interrupts was done after the signal.
    send_soon()
    try:
        call(*args)
    except KeyboardInterrupt:
        return (time.process_time() - sent[-1]) / {FULL}
    raise AssertionError("the call was not interrupted")
"""

# Rows by the block, which take no memory: every block is the same. Where each row has an index, rows are
# long, so that the call and not the making of indices is what takes the time.
SEARCH = """
codebook = torch.randn(16384, 64)
block = torch.randn(1, 64, 64)
call = lambda size: vq.nearest_code(block.expand(size, -1, -1), codebook, backend="native")
"""

CALLS = {
    "search": SEARCH,
    # Beyond the range of float32's scores: every row is compared with all codes exactly.
    "exact_scan": """
        codebook = 1e18 * torch.randn(1024, 64)
        block = 1e25 * torch.randn(1, 64, 64)
        call = lambda size: vq.nearest_code(block.expand(size, -1, -1), codebook, backend="native")
    """,
    "fused_step": """
        codebook = torch.randn(16384, 64)
        block = torch.randn(1, 64, 64)
        call = lambda size: vq.vector_quantize(block.expand(size, -1, -1), codebook, backend="native")
    """,
    "statistics": """
        row = torch.randn(1, 1, 65536)
        def call(size):
            indices = torch.zeros(1, 64 * size, dtype=torch.int64)
            native.code_statistics(row.expand(1, 64 * size, -1), indices, 4, True)
    """,
    "gather": """
        codebook, row = torch.randn(4, 65536), torch.empty(1, 1, 65536)
        def call(size):
            indices = torch.zeros(1, 64 * size, dtype=torch.int64)
            native.gather_codes(codebook, indices, row.expand(1, 64 * size, -1))
    """,
    "backward_pass": """
        codebook, row, out = torch.randn(4, 65536), torch.randn(1, 1, 65536), torch.empty(1, 1, 65536)
        def call(size):
            rows = row.expand(1, 64 * size, -1)
            indices = torch.zeros(1, 64 * size, dtype=torch.int64)
            native.vector_quantize_backward(
                rows, torch.ones(()), rows, codebook, indices, torch.tensor(64 * size), 1.0,
                "rotation_trick", out.expand(1, 64 * size, -1),
            )
    """,
}


@pytest.fixture(autouse=True)
def _has_native() -> None:
    if (reason := native.unavailable_reason()) is not None:
        pytest.skip(reason)


def run(setup: str, program: str, **environment: str) -> list[str]:
    """What a program prints, word by word."""
    code = PROLOGUE + textwrap.dedent(setup) + textwrap.dedent(program)
    done = preloaded.run(["-c", code], **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize("name", CALLS)
def test_a_long_call_ends_soon(name: str) -> None:
    (done,) = run(CALLS[name], "print(interrupt(call, size_for(call)))")
    assert float(done) < SOON


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_isa(isa, monkeypatch)
    (done,) = run(SEARCH, "print(interrupt(call, size_for(call)))", OMP_NUM_THREADS="2")
    assert float(done) < SOON


@pytest.mark.parametrize("settings", ["", "kmeans_init=True", "learnable_codebook=True"])
def test_a_layer_is_as_it_was_and_goes_on(settings: str) -> None:
    setup = f"""
        import copy
        torch.manual_seed(0)
        layer = vq.FusedVectorQuantizer(64, 16384, backend="native", {settings})
        trained = copy.deepcopy(layer)
        block = torch.randn(1, 64, 64)
        call = lambda size: trained(block.expand(size, -1, -1))
    """
    program = """
        size = size_for(call)
        before = copy.deepcopy(layer.state_dict())
        done = interrupt(lambda: layer(block.expand(size, -1, -1)))
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
        assert layer.last_counts.sum() == 0
        fresh = copy.deepcopy(layer)
        fresh.load_state_dict(before)
        x = torch.randn(50, 64)
        outputs = []
        for each in (layer, fresh):
            torch.manual_seed(1)
            outputs.append(each(x))
        assert all(torch.equal(a, b) for a, b in zip(*outputs))
        assert torch.equal(layer.codebook, fresh.codebook)
        print(done)
    """
    (done,) = run(setup, program)
    assert float(done) < SOON


def test_a_call_of_another_thread_is_left_alone() -> None:
    """The main thread gets the exception; the other's call goes on to its end."""
    program = """
        size = size_for(call, 1.5)
        results, ended = [], threading.Event()
        def work():
            results.append(call(size))
            ended.set()
        threading.Thread(target=work).start()
        interrupt(ended.wait)
        print(len(results))
        ended.wait()
        assert torch.equal(results[0], call(1).expand(size, -1))
    """
    assert run(SEARCH, program) == ["0"]


def test_a_handler_that_raises_nothing_runs_at_once_and_the_call_goes_on() -> None:
    program = """
        def handler(*_):
            seen.append(time.process_time() - sent[-1])
            seen.append(vq.nearest_code(block, codebook, backend="native"))  # inside the other call
        seen = []
        signal.signal(signal.SIGINT, handler)
        size = size_for(call, 3)
        send_soon()
        begin = time.process_time()
        indices = call(size)
        whole = time.process_time() - begin
        want = call(1)
        assert torch.equal(indices, want.expand(size, -1))
        assert torch.equal(seen[1], want)
        print(seen[0] / whole)
    """
    (done,) = run(SEARCH, program, OMP_NUM_THREADS="2")
    assert float(done) < 0.5
