"""Cached sampling gives what re-running the network for every code gives, with far less work."""

from __future__ import annotations

import pytest
import torch
from priors_support import CASES, KINDS, Case, K, build, cases, inputs, kinds, naive_sample, transformer
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

VOLUMES = [Case((2, 3, 4), classes=3), Case((4, 2, 3), upper=(2, 1, 3))]
ALL = [(kind, case) for kind in KINDS for case in CASES] + [("transformer", case) for case in VOLUMES]
every_case = pytest.mark.parametrize(("kind", "case"), ALL, ids=lambda value: str(value))


@every_case
def test_one_by_one_logits_equal_those_of_the_full_pass(kind: str, case: Case, device: torch.device) -> None:
    prior = build(kind, case, device)
    codes, conditions = inputs(case, device)
    with torch.no_grad():
        full = prior.logits(codes, **conditions).flatten(2)
        decoder = prior._decoder(tuple(codes.shape), conditions.get("labels"), conditions.get("upper"))
        flat = codes.flatten(1)
        steps = [decoder(flat[:, t - 1] if t else None) for t in range(flat.shape[1])]
    assert full.std() > 0.05  # or the comparison would say nothing
    error = (torch.stack(steps, dim=2) - full).abs().max()
    assert error < 1e-5 * full.abs().max()


@every_case
def test_sample_equals_naive_sampler_code_for_code(kind: str, case: Case, device: torch.device) -> None:
    prior = build(kind, case, device)
    _, conditions = inputs(case, device)
    shape = (3, *case.sizes)
    cached = prior.sample(shape, **conditions, generator=torch.Generator(device).manual_seed(7))
    naive = naive_sample(prior, shape, conditions, torch.Generator(device).manual_seed(7))
    assert cached.dtype == torch.int64
    assert torch.equal(cached, naive)
    assert len(cached.unique()) > 1


@kinds
@pytest.mark.parametrize(
    "filters",
    [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 4, "top_p": 0.9}],
    ids=["temperature", "top-k", "top-p", "all"],
)
def test_sample_equals_naive_sampler_with_filters(
    kind: str, filters: dict[str, float], device: torch.device
) -> None:
    case = Case((4, 5), classes=3)
    prior = build(kind, case, device)
    _, conditions = inputs(case, device, batch=2)
    cached = prior.sample(
        (2, 4, 5), **conditions, generator=torch.Generator(device).manual_seed(3), **filters
    )
    naive = naive_sample(prior, (2, 4, 5), conditions, torch.Generator(device).manual_seed(3), **filters)
    assert torch.equal(cached, naive)


@kinds
def test_greedy_sampling_takes_the_most_probable_code_each_time(kind: str, device: torch.device) -> None:
    case = Case((4, 3))
    prior = build(kind, case, device)
    codes = prior.sample((2, 4, 3), top_k=1)
    with torch.no_grad():
        assert torch.equal(codes, prior.logits(codes).argmax(dim=1))


@kinds
def test_a_generator_gives_the_same_codes_and_other_rows_do_not_matter(
    kind: str, device: torch.device
) -> None:
    case = Case((4, 4), classes=3)
    prior = build(kind, case, device)

    def sample(labels: list[int]) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(11)
        return prior.sample((3, 4, 4), torch.tensor(labels, device=device), generator=generator)

    first = sample([0, 1, 2])
    assert torch.equal(first, sample([0, 1, 2]))
    assert torch.equal(first[1], sample([2, 1, 1])[1])


@kinds
def test_training_flags_and_gradients_are_as_before_and_dropout_is_off(
    kind: str, device: torch.device
) -> None:
    case = Case((3, 4))
    prior = build(kind, case, device, dropout=0.5).train()
    frozen = next(iter(prior.children()))
    frozen.eval()
    flags = [module.training for module in prior.modules()]
    generator = torch.Generator(device).manual_seed(5)
    codes = prior.sample((2, 3, 4), generator=generator)
    assert [module.training for module in prior.modules()] == flags
    naive = naive_sample(prior.eval(), (2, 3, 4), {}, torch.Generator(device).manual_seed(5))
    assert torch.equal(codes, naive)
    prior.train()(codes).sum().backward()  # the codes are ordinary tensors, not those of inference mode
    assert all(parameter.grad is not None for parameter in prior.parameters())


@kinds
def test_training_flags_are_restored_after_an_error(
    kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = build(kind, Case((3, 4)), device).train()

    def fail(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(prior, "_decoder", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        prior.sample((2, 3, 4))
    assert all(module.training for module in prior.modules())


@kinds
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "bf16-weights"])
def test_low_precision_steps_agree_with_the_low_precision_pass(
    kind: str, whole: bool, device: torch.device
) -> None:
    case = Case((4, 5), classes=3, upper=(2, 5))
    prior = build(kind, case, device)
    codes, conditions = inputs(case, device)
    if whole:
        prior.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=not whole):
        full = prior.logits(codes, **conditions).flatten(2)
        decoder = prior._decoder(tuple(codes.shape), conditions["labels"], conditions["upper"])
        flat = codes.flatten(1)
        steps = [decoder(flat[:, t - 1] if t else None) for t in range(flat.shape[1])]
        log_prob = prior.log_prob(codes, **conditions)
        sampled = prior.sample((3, 4, 5), **conditions)
    assert full.dtype == torch.bfloat16
    error = (torch.stack(steps, dim=2).float() - full.float()).abs()
    assert error.mean() < 0.02 * full.float().std()
    assert log_prob.dtype == torch.float32
    assert sampled.shape == (3, 4, 5)


@kinds
def test_sampling_costs_about_one_full_pass_not_one_for_each_code(kind: str) -> None:
    case = Case((8, 8))
    prior = build(kind, case, torch.device("cpu"))
    for module in prior.modules():
        if parametrize.is_parametrized(module, "weight"):  # the counter fails on these in inference mode
            parametrize.remove_parametrizations(module, "weight")
    codes, _ = inputs(case, torch.device("cpu"), batch=1)
    with torch.inference_mode(), FlopCounterMode(display=False) as full:
        prior.logits(codes)
    with FlopCounterMode(display=False) as cached:
        prior.sample((1, 8, 8))
    assert 64 * full.get_total_flops() > 25 * cached.get_total_flops()


@cases
def test_maps_smaller_than_a_transformers_shape_use_the_same_weights(
    case: Case, device: torch.device
) -> None:
    prior = build("transformer", case, device)
    codes, conditions = inputs(case, device)
    assert prior.log_prob(codes, **conditions).shape == (3,)
    too_large = torch.zeros(1, *[17] * len(case.sizes), dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="17"):
        transformer(K, len(case.sizes)).to(device).log_prob(too_large)


@kinds
def test_an_empty_batch_is_empty(kind: str, device: torch.device) -> None:
    case = Case((3, 4), classes=3)
    prior = build(kind, case, device)
    labels = torch.zeros(0, dtype=torch.int64, device=device)
    codes = prior.sample((0, 3, 4), labels)
    assert codes.shape == (0, 3, 4)
    assert prior.log_prob(codes, labels).shape == (0,)
