"""log p(x) by summing over all code maps: against a sum written out, and what it says of the bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from models import VQVAE, VQVAE2, TransformerPrior
from models.evaluation.exact import count_maps, exact_likelihood

TINY = {"hidden": 8, "residual_hidden": 4, "embedding_dim": 4, "likelihood": "logistic"}


def test_it_is_the_sum_over_all_maps() -> None:
    torch.manual_seed(0)
    model = VQVAE(1, downscale=4, codebook_size=3, **TINY).eval()
    prior = TransformerPrior(3, 8, shape=(2, 2), layers=1, heads=2).eval()
    torch.nn.init.normal_(prior.head.weight)
    x = torch.rand(3, 1, 8, 8) - 0.5
    terms = []
    with torch.no_grad():
        for digits in itertools.product(range(3), repeat=4):
            codes = torch.tensor(digits).view(1, 2, 2)
            decoder = model.decoder_log_prob(x, [codes.expand(3, 2, 2)]).double().flatten(1).sum(1)
            terms.append(decoder + prior.log_prob(codes).double())
    expected = torch.stack(terms, dim=1)  # [3, 81]
    result = exact_likelihood(model, x, [prior], chunk=10)
    torch.testing.assert_close(result.log_prob, expected.logsumexp(1), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(result.best, expected.amax(1), rtol=1e-6, atol=1e-4)
    codes = model.encode(x)
    own = model.decoder_log_prob(x, codes).double().flatten(1).sum(1) + prior.log_prob(codes[0]).double()
    torch.testing.assert_close(result.encoded, own.detach(), rtol=1e-6, atol=1e-4)
    assert bool((result.encoded <= result.best + 1e-4).all() and (result.best <= result.log_prob).all())


@pytest.mark.parametrize("decoder", ["independent", "autoregressive"])
def test_levels_and_heads_are_counted_through(decoder: str) -> None:
    torch.manual_seed(0)
    model = VQVAE2(1, downscales=(2, 2), codebook_size=2, heads=2, decoder=decoder, **TINY)
    x = torch.rand(2, 1, 4, 4) - 0.5
    assert count_maps(model, (4, 4)) == 4 * 4**4  # one position of two codes above four of them
    result = exact_likelihood(model, x)
    assert model.training, "the mode is as it was"
    model.eval()
    own = model.decoder_log_prob(x, model.encode(x)).double().flatten(1).sum(1) - math.log(1024)
    torch.testing.assert_close(result.encoded, own.detach(), rtol=1e-6, atol=1e-4)
    assert bool((result.encoded <= result.log_prob).all())


def test_what_it_refuses() -> None:
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"the number of code maps is 160000; accepted: at most 65536"):
        exact_likelihood(VQVAE(1, downscale=4, codebook_size=20, **TINY), x)
    prior = TransformerPrior(3, 8, shape=(2, 2), layers=1, heads=2, num_classes=2)
    with pytest.raises(ValueError, match="num_classes is 2; accepted: priors without classes"):
        exact_likelihood(VQVAE(1, downscale=4, codebook_size=3, **TINY), x, [prior])
