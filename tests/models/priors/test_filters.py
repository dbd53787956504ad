"""Temperature, top-k and top-p against their definitions, and the draw against the probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from models.priors.filters import check_filters, draw, exponential, filter_logits

PROBABILITIES = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.05, 0.05, 0.1, 0.8]])


def probabilities(**filters: float) -> torch.Tensor:
    return filter_logits(PROBABILITIES.log(), **filters).softmax(dim=-1)


def test_nothing_is_filtered_by_default() -> None:
    torch.testing.assert_close(probabilities(), PROBABILITIES)


@pytest.mark.parametrize("temperature", [0.25, 0.5, 2.0])
def test_temperature_raises_probabilities_to_its_inverse(temperature: float) -> None:
    expected = PROBABILITIES ** (1 / temperature)
    torch.testing.assert_close(
        probabilities(temperature=temperature), expected / expected.sum(-1, keepdim=True)
    )


def test_top_k_keeps_the_k_most_probable() -> None:
    expected = torch.tensor([[4 / 7, 0, 3 / 7, 0], [0, 0, 1 / 9, 8 / 9]])
    torch.testing.assert_close(probabilities(top_k=2), expected)


@pytest.mark.parametrize("top_k", [1, 3, 5, 9])
def test_top_k_keeps_exactly_k_of_equal_logits(top_k: int) -> None:
    kept = filter_logits(torch.zeros(2, 5), top_k=top_k).isfinite().sum(dim=-1)
    assert kept.tolist() == [min(top_k, 5)] * 2


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-6, [[0], [3]]), (0.45, [[0, 2], [3]]), (0.75, [[0, 2, 3], [3]]), (0.85, [[0, 2, 3], [2, 3]])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: list[list[int]]) -> None:
    filtered = filter_logits(PROBABILITIES.log(), top_p=top_p)
    assert [row.isfinite().nonzero().flatten().tolist() for row in filtered] == kept
    torch.testing.assert_close(
        filtered[filtered.isfinite()], PROBABILITIES.log()[filtered.isfinite()]
    )  # what is kept is unchanged


def test_top_p_acts_on_what_temperature_and_top_k_left() -> None:
    # 0.4 and 0.3 become 0.64 and 0.36 at temperature 0.5: the first alone reaches 0.6.
    filtered = filter_logits(PROBABILITIES[:1].log(), temperature=0.5, top_k=2, top_p=0.6)
    assert filtered.isfinite().tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_filtering_is_in_float32(dtype: torch.dtype) -> None:
    assert filter_logits(PROBABILITIES.to(dtype), temperature=0.7, top_k=3, top_p=0.9).dtype == torch.float32


def test_draws_have_the_given_probabilities_and_left_out_codes_never_come() -> None:
    count = 200_000
    logits = filter_logits(PROBABILITIES[:1].log(), top_k=3).expand(count, -1)
    frequencies = draw(logits, torch.Generator().manual_seed(0)).bincount(minlength=4) / count
    expected = torch.tensor([4 / 9, 0, 3 / 9, 2 / 9])
    assert frequencies[1] == 0
    assert (frequencies - expected).abs().max() < 5 * math.sqrt(0.25 / count)


def test_a_noise_of_zero_does_not_let_a_left_out_code_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape))
    logits = filter_logits(PROBABILITIES.log(), top_k=1)
    assert draw(logits).tolist() == [0, 3]


def test_noise_does_not_depend_on_the_logits() -> None:
    first = torch.randn(3, 6)
    second = torch.cat([first[:1], torch.randn(2, 6)])
    one, other = (draw(x, torch.Generator().manual_seed(4))[0] for x in (first, second))
    assert one == other


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature is 0; accepted: .* above 0"),
        ({"temperature": -1.0}, ValueError, "temperature is -1; accepted: a finite number above 0"),
        ({"temperature": float("inf")}, ValueError, "temperature is inf; accepted: a finite number"),
        ({"top_p": -0.5}, ValueError, "top_p is -0.5; accepted: a number above 0"),
        ({"temperature": float("nan")}, ValueError, "temperature.*nan"),
        ({"temperature": "1"}, TypeError, "temperature.*'1'"),
        ({"top_k": 0}, ValueError, "top_k is 0; accepted: an integer of at least 1"),
        ({"top_k": 2.5}, TypeError, "top_k.*2.5"),
        ({"top_p": 0.0}, ValueError, "top_p is 0; accepted: a number above 0"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5; accepted: a number"),
        ({"top_p": True}, TypeError, "top_p.*True"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_filter_out_of_range_is_named(
    arguments: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_filters(**{"temperature": 1.0, "top_k": None, "top_p": None, **arguments})


@pytest.mark.parametrize("probability", [1e-6, 1e-7, 1e-8, 1e-9])
def test_rare_codes_are_drawn_as_often_as_they_should_be(probability: float) -> None:
    """Summed over the noise's own grid, steps of 2^-24 twice, as no number of draws could show it.

    A code of probability p is drawn in place of a common one if its value, over p, is below that of the
    other, over 1 - p, which is above t with probability exp(-t).
    """
    step = 2.0**-24
    odds = (1 - probability) / probability
    total = 0.0
    first = max(1, int(40 * probability / step) + 1)  # values of the upper half that can be drawn
    for place in range(first):
        noise = torch.tensor(1 - (place + 1) * step, dtype=torch.float32)
        stride = 1 if first <= 2 else 2**8
        fine = (torch.arange(stride // 2, 2**24, stride, dtype=torch.float64) * step).float()
        value = exponential(noise, fine).double()
        total += float(torch.exp(-value * odds).mean()) * step
    assert total == pytest.approx(probability, rel=0.01)


def test_the_noise_is_finite_and_as_before_to_its_lower_half() -> None:
    step = 2.0**-24
    ends = torch.tensor([0.0, step, 0.5 - step, 0.5, 1 - step])
    for fine in (0.0, 0.5, 1 - step):
        value = exponential(ends, torch.full_like(ends, fine))
        assert torch.isfinite(value).all()
        assert (value > 0).all()
        torch.testing.assert_close(value[1:4], -ends[1:4].log(), rtol=1e-6, atol=1.0 if fine else 1e-7)
    logits = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    codes = draw(logits, generator)
    before = torch.rand(logits.shape, generator=again)
    assert torch.equal(codes, (logits - (-before.log()).log()).argmax(-1)), (
        "what was drawn before there were two"
    )
    assert torch.equal(generator.get_state(), again.get_state())
