"""The priors are normalised, uniform before training, agree with their own samples, and learn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from priors_support import KINDS, UPPER_K, Case, build, inputs, kinds
from torch import Tensor

TINY = [Case((2, 2)), Case((1, 3), classes=2), Case((3, 1), upper=(2, 1)), Case((4,), classes=2, upper=(2,))]


def every_map(codebook_size: int, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """All codebook_size ** N maps of a shape."""
    maps = list(itertools.product(range(codebook_size), repeat=math.prod(sizes)))
    return torch.tensor(maps, device=device).view(-1, *sizes)


def first_condition(case: Case, device: torch.device, batch: int) -> dict[str, Tensor]:
    _, conditions = inputs(case, device, batch=2)
    return {name: value[1:].expand(batch, *value.shape[1:]) for name, value in conditions.items()}


@kinds
@pytest.mark.parametrize("case", TINY, ids=str)
def test_probabilities_of_all_maps_sum_to_one(kind: str, case: Case, device: torch.device) -> None:
    prior = build(kind, case, device)
    maps = every_map(prior.codebook_size, case.sizes, device)
    log_prob = prior.log_prob(maps, **first_condition(case, device, len(maps)))
    assert log_prob.dtype == torch.float32
    assert log_prob.shape == (len(maps),)
    assert log_prob.exp().max() > 1.5 / len(maps)  # not the uniform distribution, which always sums to one
    assert log_prob.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@kinds
def test_an_untrained_prior_is_uniform(kind: str, device: torch.device) -> None:
    prior = KINDS[kind](7, num_classes=3, upper_codebook_size=UPPER_K).to(device).eval()
    codes = torch.randint(7, (3, 4, 5), device=device)
    upper = torch.randint(UPPER_K, (3, 2, 5), device=device)
    log_prob = prior.log_prob(codes, torch.tensor([0, 1, 2], device=device), upper)
    expected = torch.full((3,), -20 * math.log(7), device=device)
    torch.testing.assert_close(log_prob, expected)
    assert torch.equal(log_prob, prior(codes, torch.tensor([0, 1, 2], device=device), upper))


@kinds
def test_samples_have_the_frequencies_that_log_prob_says(kind: str, device: torch.device) -> None:
    case = Case((2, 2), classes=2)
    prior = build(kind, case, device)
    maps = every_map(prior.codebook_size, case.sizes, device)
    count = 40_000
    labels = torch.ones(count, dtype=torch.int64, device=device)
    samples = prior.sample((count, 2, 2), labels, generator=torch.Generator(device).manual_seed(0))
    with torch.no_grad():
        expected = count * prior.log_prob(maps, labels[: len(maps)]).double().exp().cpu()
    weights = prior.codebook_size ** torch.arange(3, -1, -1, device=device)
    observed = (samples.flatten(1) * weights).sum(dim=1).bincount(minlength=len(maps)).cpu()
    often = expected >= 5
    chi2 = ((observed - expected)[often] ** 2 / expected[often]).sum().item()
    degrees = int(often.sum()) - 1
    assert degrees > 20
    assert chi2 < degrees + 6 * math.sqrt(2 * degrees)


def striped(generator: torch.Generator, batch: int) -> tuple[Tensor, dict[str, Tensor], float]:
    """Class 0 repeats a code along its row, class 1 along its column: 4 free codes of 4 on a 4 x 4 map."""
    labels = torch.randint(2, (batch,), generator=generator)
    free = torch.randint(4, (batch, 4, 1), generator=generator).expand(-1, 4, 4)
    codes = torch.where(labels.view(-1, 1, 1) == 0, free, free.transpose(1, 2))
    return codes, {"labels": labels}, 4 * math.log(4)


def refined(generator: torch.Generator, batch: int) -> tuple[Tensor, dict[str, Tensor], float]:
    """Each code is that of the level above or, as often, the one after it."""
    upper = torch.randint(3, (batch, 2, 2), generator=generator)
    fine = upper.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    codes = fine + torch.randint(2, (batch, 4, 4), generator=generator)
    return codes, {"upper": upper}, 16 * math.log(2)


@kinds
@pytest.mark.parametrize("draw", [striped, refined], ids=["class", "upper"])
def test_a_few_steps_of_training_find_the_structure(kind: str, draw, device: torch.device) -> None:
    torch.manual_seed(0)
    conditional = {"num_classes": 2} if draw is striped else {"upper_codebook_size": 3}
    prior = KINDS[kind](4, dropout=0.0, **conditional).to(device)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(100):
        codes, conditions, entropy = draw(generator, 64)
        conditions = {name: value.to(device) for name, value in conditions.items()}
        loss = -prior(codes.to(device), **conditions).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    uniform = 16 * math.log(4)
    assert losses[0] == pytest.approx(uniform, rel=1e-3)
    reached = sum(losses[-10:]) / 10
    assert entropy * 0.97 < reached < entropy + 0.25 * (uniform - entropy)
