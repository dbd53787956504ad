"""What makes a step fast, and that it changes nothing else: strides, fused Adam, compiling, bfloat16."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from training_support import histories, settings, train

from models import VAE, VQVAE, VQVAE2
from models.data import DataConfig, load_data
from models.training import loop
from models.training.memory_format import channels_last, weights_channels_last_
from models.training.optimizer import fused_adam
from vq_kernels import FusedVectorQuantizer

TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 8, "codebook_size": 16}


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(data="digits", limit=256))


@pytest.mark.parametrize("learnable", [False, True], ids=["ema", "gradient"])
@pytest.mark.parametrize("sizes", [(6, 5), (3, 4, 5)], ids=["2d", "3d"])
def test_the_layer_copies_nothing_of_channels_last_features(sizes: tuple[int, ...], learnable: bool) -> None:
    options = {"learnable_codebook": learnable, "channel_last": False, "rotation_trick": False}
    layer = FusedVectorQuantizer(16, 32, **options)
    z = channels_last(torch.randn(7, 16, *sizes)).requires_grad_()
    pull = channels_last(torch.randn(7, 16, *sizes))
    copies = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy")
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True) as seen:
        quantized, _, loss = layer(z)
        ((quantized * pull).sum() + loss).backward()
    as_large = [
        event for event in seen.events() if event.name in copies and list(z.shape) in event.input_shapes
    ]
    assert [event.name for event in as_large] == []
    assert z.grad is not None
    assert quantized.stride() == z.grad.stride() == z.stride()


def test_features_reach_the_layer_in_its_own_order() -> None:
    model = VQVAE(3, **TINY)
    weights_channels_last_(model)
    seen: list[torch.Tensor] = []
    model.quantizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(channels_last(torch.rand(2, 3, 16, 16) - 0.5))
    assert seen[0].permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize(
    "model",
    [
        lambda: VQVAE(3, **TINY),
        lambda: VQVAE(3, likelihood="categorical", **TINY),
        lambda: VQVAE(2, ndim=1, **TINY),
        lambda: VQVAE(2, ndim=3, downscale=2, **TINY),
        lambda: VQVAE2(3, downscales=(2, 2), likelihood="logistic", **TINY),
        lambda: VAE(3, (16, 16), latent_dim=4, channels=(4, 4, 4, 4)),
    ],
    ids=["vqvae", "categorical", "1d", "3d", "vqvae2", "vae"],
)
def test_strides_change_no_result(model) -> None:
    def step(last: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        made = model()
        ndim = getattr(made, "ndim", 2)
        x = torch.rand(2, made.in_channels, *[16] * ndim) - 0.5
        if last:
            weights_channels_last_(made)
            x = channels_last(x)
        output = made(x)
        output.loss.backward()
        gradients = [weight.grad for weight in made.parameters() if weight.grad is not None]
        return [output.loss.detach(), output.reconstruction.detach(), *gradients]

    for plain, last in zip(step(False), step(True), strict=True):
        torch.testing.assert_close(plain, last, rtol=2e-4, atol=2e-6)


def test_a_trained_model_has_the_strides_of_a_loaded_one(tmp_path: Path, data) -> None:
    model = train(settings(tmp_path, name="a", hidden=16, epochs=1), data)
    assert all(weight.is_contiguous() for weight in model.parameters())


def test_a_state_of_plain_adam_is_taken_over_weight_by_weight() -> None:
    """The fused kernel goes by address: a state of other strides would belong to other weights."""
    torch.manual_seed(0)
    plain, fused = torch.nn.Conv2d(5, 7, 3), torch.nn.Conv2d(5, 7, 3)
    before = torch.optim.Adam(plain.parameters(), lr=1e-2)
    gradients = [[torch.randn_like(weight) for weight in plain.parameters()] for _ in range(4)]

    def step(layer: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        for weight, gradient in zip(layer.parameters(), gradients[number], strict=True):
            weight.grad = torch.empty_like(weight).copy_(gradient)
        optimizer.step()

    step(plain, before, 0)
    step(plain, before, 1)
    fused.load_state_dict(plain.state_dict())
    weights_channels_last_(fused)
    after = fused_adam(fused.parameters(), lr=1e-2)
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["fused"]
    for number in (2, 3):
        step(plain, before, number)
        step(fused, after, number)
    for old, new in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(old, new)


@pytest.mark.parametrize("changes", [{}, {"model": "vae", "kl_warmup": 20}], ids=["vqvae", "vae"])
def test_a_compiled_step_is_one_graph_for_each_size_and_mode(
    tmp_path: Path, data, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    """Nothing breaks the graph, and no step but the first of its kind is compiled."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = train(settings(tmp_path, name="compiled", compile=True, kmeans_init=False, **changes), data)
    graphs = counters["stats"]["unique_graphs"]
    plain = train(settings(tmp_path, name="plain", kmeans_init=False, **changes), data)
    # In training and in validation whole batches, and there a smaller last one.
    assert 2 <= graphs <= 4
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weight, compiled.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_compiling_needs_a_compiler(tmp_path: Path, data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(
        ValueError, match="compile is true, which needs a C\\+\\+ compiler, and no-such-compiler"
    ):
        train(settings(tmp_path, name="a", compile=True), data)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["vqvae", "vqvae2", "vae"])
def test_losses_are_float32_under_autocast(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "vqvae":
        model = VQVAE(3, **TINY)
    elif kind == "vqvae2":
        model = VQVAE2(3, downscales=(2, 2), **TINY)
    else:
        model = VAE(3, (16, 16), latent_dim=4, channels=(4, 4, 4, 4))
    x = torch.rand(4, 3, 16, 16) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    values = [output.loss, output.reconstruction, *output.terms.values()]
    assert {value.dtype for value in values} == {torch.float32}
    if kind != "vae":
        error = (x - output.reconstruction).double().square().mean()
        torch.testing.assert_close(output.terms["reconstruction"].double(), error, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_bfloat16_trains_to_nearly_the_same_loss(tmp_path: Path, data, clip: float | None) -> None:
    for precision in ("32-true", "bf16-mixed"):
        train(settings(tmp_path, name=precision, precision=precision, clip=clip, epochs=4), data)
    plain, half = histories(tmp_path / "32-true", tmp_path / "bf16-mixed")
    assert half["validation/loss"][1][-1] == pytest.approx(plain["validation/loss"][1][-1], rel=0.05)


@pytest.mark.parametrize(
    ("supported", "precision", "lines"),
    [(True, "32-true", 1), (True, "bf16-mixed", 0), (False, "32-true", 0)],
)
def test_bfloat16_is_proposed_once_where_the_processor_has_it(
    tmp_path: Path, data, monkeypatch: pytest.MonkeyPatch, capsys, supported: bool, precision: str, lines: int
) -> None:
    monkeypatch.setattr(loop, "has_bfloat16", lambda: supported)
    loop._propose_bfloat16.cache_clear()
    for name in ("a", "b"):
        config = settings(tmp_path, name=name, precision=precision, epochs=1, progress=True)
        loop.check_start(config, False, False)
    assert capsys.readouterr().out.count("--precision bf16-mixed") == lines
