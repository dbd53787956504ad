"""Which backend serves a call: blocks that nest, threads and tasks, backward passes elsewhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vq_kernels as vq
from vq_kernels import backends
from vq_kernels.backends import (
    QuantizeOptions,
    choose,
    native,
    register_backend,
    requested_backend,
    use_backend,
)
from vq_kernels.backends.reference import __dict__ as reference_functions

X, E = torch.randn(7, 4), torch.randn(5, 4)


def name_now() -> str:
    return choose("nearest_code", None, X).name


class Counting:
    """The reference under another name, which notes the operations that it is called for."""

    name = "counting"
    quantize_options = reference_functions["quantize_options"]

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, attribute: str) -> Callable[..., object]:
        function = reference_functions[attribute]

        def called(*args: object) -> object:
            if not attribute.endswith("_reason"):
                self.calls.append(attribute)
            return function(*args)

        return called


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    backend = Counting()
    register_backend(backend)
    return backend


def test_blocks_nest_and_give_back_what_was_before() -> None:
    automatic = name_now()
    with use_backend("reference"):
        assert name_now() == "reference"
        with use_backend(None):
            assert name_now() == automatic
            with use_backend("reference"):
                assert name_now() == "reference"
            assert name_now() == automatic
        assert name_now() == "reference"
    assert name_now() == automatic
    assert requested_backend() is None


def test_a_block_is_left_by_an_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert requested_backend() is None


def test_an_object_is_entered_again_and_within_itself() -> None:
    before = requested_backend()
    again = use_backend("reference")
    try:
        for _ in range(2):
            with again:
                assert name_now() == "reference"
                with again:
                    assert name_now() == "reference"
                assert name_now() == "reference"
            assert requested_backend() == before
    finally:
        use_backend(before)


def test_blocks_of_two_threads_that_overlap_leave_nothing_behind() -> None:
    inside, seen = threading.Barrier(2), []

    def work(leave_first: bool) -> None:
        with use_backend("reference"):
            inside.wait()
            if leave_first:
                seen.append(name_now())
        inside.wait()
        seen.append(str(requested_backend()))

    threads = [threading.Thread(target=work, args=(i == 0,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["None", "None", "reference"]
    assert requested_backend() is None


def test_one_object_is_entered_in_several_threads() -> None:
    shared, seen = use_backend("reference"), []
    use_backend(None)

    def work() -> None:
        for _ in range(50):
            with shared:
                seen.append(name_now())
            seen.append(str(requested_backend()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen.count("reference") == seen.count("None") == 200


def test_tasks_that_take_turns_have_their_own() -> None:
    async def work(name: str | None) -> list[str | None]:
        seen: list[str | None] = []
        with use_backend(name):
            for _ in range(3):
                seen.append(requested_backend())
                await asyncio.sleep(0)
        return [*seen, requested_backend()]

    async def both() -> list[list[str | None]]:
        return list(await asyncio.gather(work("reference"), work(None)))

    first, second = asyncio.run(both())
    assert first == ["reference", "reference", "reference", None]
    assert second == [None, None, None, None]
    assert requested_backend() is None


def run_in_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("where", ["after_the_block", "in_another_thread", "inside_another_block"])
@pytest.mark.parametrize("operation", ["vector_quantize", "gather_codes"])
def test_a_backward_pass_takes_the_backend_of_its_forward(
    operation: str, where: str, counting: Counting
) -> None:
    x, codebook = X.clone().requires_grad_(), E.clone().requires_grad_()

    def forward() -> Tensor:
        if operation == "vector_quantize":
            return vq.vector_quantize(x, codebook, gradient="rotation_trick").quantized.square().sum()
        return vq.gather_codes(codebook, torch.tensor([0, 3])).sum()

    backward = {"vector_quantize": "vector_quantize_backward", "gather_codes": "code_statistics"}[operation]
    if where == "inside_another_block":
        loss = forward()  # chosen automatically
        with use_backend("counting"):
            loss.backward()
        assert counting.calls == []
        return
    with use_backend("counting"):
        loss = forward()
    if where == "after_the_block":
        loss.backward()
    else:
        run_in_thread(loss.backward)
    assert counting.calls == [operation, backward]


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the native module is not built")
def test_a_backend_is_not_chosen_for_an_option_that_it_would_not_heed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "quantize_options", native.quantize_options - {"gradient"})
    with use_backend("native"):
        vq.vector_quantize(X, E)
        with pytest.raises(ValueError, match=r"'native' cannot .*: gradient is 'rotation_trick'"):
            vq.vector_quantize(X, E, gradient="rotation_trick")
    options = QuantizeOptions("l2", "exact", -1, True, False, None)
    assert choose("vector_quantize", None, X, E, options).name == "native"
    assert choose("vector_quantize", None, X, E, options._replace(gradient="rotation_trick")).name != "native"


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the native module is not built")
def test_a_backend_is_not_chosen_for_an_operation_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(native, "nearest_code")
    assert name_now() == "reference"
    with pytest.raises(ValueError, match="backend 'native' cannot serve this call: it has no nearest_code"):
        vq.nearest_code(X, E, backend="native")
