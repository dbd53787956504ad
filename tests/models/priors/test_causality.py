"""No logit depends on its own or a later code, and every earlier code in the receptive field matters."""

from __future__ import annotations

import pytest
import torch
from priors_support import (
    KINDS,
    Case,
    K,
    build,
    in_place_modules,
    inputs,
    kinds,
    pixelcnn,
    randomise,
)
from torch import Tensor

from models.priors import AutoregressivePrior

MAPS = [Case((5, 5)), Case((3, 7), classes=3), Case((7, 3), upper=(4, 2)), Case((12,)), Case((1, 8))]
maps = pytest.mark.parametrize("case", MAPS, ids=str)


def influence(prior: AutoregressivePrior, codes: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    """[N, N]: how strongly the logits at position i depend on the embedded code at position j.

    Copy i of the map contributes its logits at position i, so one backward pass gives every row.
    """
    count = codes[0].numel()
    captured: list[Tensor] = []

    def capture(module: torch.nn.Module, arguments: object, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    repeated = {name: value[:1].expand(count, *value.shape[1:]) for name, value in conditions.items()}
    hook = prior.get_submodule("code").register_forward_hook(capture)
    logits = prior.logits(codes[:1].expand(count, *codes.shape[1:]), **repeated).flatten(2)
    hook.remove()
    weights = torch.randn(logits.shape[:2], generator=torch.Generator().manual_seed(0)).to(logits)
    own = logits.diagonal(dim1=0, dim2=2)  # [K, N], position i of copy i
    (gradient,) = torch.autograd.grad((own * weights.T).sum(), captured)
    seen = gradient.reshape(count, -1, gradient.shape[-1]).abs().sum(dim=-1)
    return torch.nn.functional.pad(seen, (0, count - seen.shape[1]))  # the last code may not even be read


@kinds
@maps
def test_gradients_reach_every_earlier_code_and_no_other(kind: str, case: Case, device: torch.device) -> None:
    deep = {"layers": 10} if kind == "pixelcnn" else {}
    prior = build(kind, case, device, **deep).double()
    codes, conditions = inputs(case, device)
    seen = influence(prior, codes, conditions) > 0
    earlier = torch.ones_like(seen).tril(-1)
    assert not (seen & ~earlier).any()
    if kind == "pixelsnail-no-attention":
        # Its convolutions reach k // 2 columns to the right for each row up, as documented.
        width = case.sizes[-1]
        place = torch.arange(len(seen), device=device)
        rows, columns = place // width, place % width
        right, up = columns - columns[:, None], rows[:, None] - rows
        earlier &= right <= up
    assert (seen | ~earlier).all()


@kinds
@maps
def test_changing_a_code_changes_later_logits_only(kind: str, case: Case, device: torch.device) -> None:
    prior = build(kind, case, device).double()
    codes, conditions = inputs(case, device)
    count = codes[0].numel()
    repeated = {name: value[:1].expand(count + 1, *value.shape[1:]) for name, value in conditions.items()}
    changed = codes[:1].flatten(1).repeat(count + 1, 1)
    position = torch.arange(count, device=device)
    changed[position, position] = (changed[position, position] + 1) % K  # the last copy stays as it was
    with torch.no_grad():
        logits = prior.logits(changed.view(-1, *case.sizes), **repeated).flatten(2)
    difference = (logits[:-1] - logits[-1]).abs().amax(dim=1)  # [changed position, position]
    until = torch.ones_like(difference).triu() > 0
    rounding = 1e-13 * logits.abs().max()  # the copies of the map are rounded differently
    assert difference.T[until].max() < rounding
    following = difference.diagonal(offset=1).reshape(-1)
    if kind == "pixelcnn" and len(case.sizes) == 2:
        row_ends = position[:-1] % case.sizes[1] == case.sizes[1] - 1
        following = following[~row_ends]  # whether the first code of a row sees these depends on the depth
    assert following.numel() == 0 or following.min() > rounding


@pytest.mark.parametrize(("layers", "reach"), [(1, 2), (2, 3), (3, 4)])
def test_the_receptive_field_of_a_pixelcnn_is_the_documented_one_without_a_hole(
    layers: int, reach: int, device: torch.device
) -> None:
    height, width = 9, 15
    prior = randomise(pixelcnn(K, layers=layers, kernel_size=3, first_kernel_size=5)).to(device).eval()
    codes = torch.randint(K, (1, height, width), device=device)
    seen = influence(prior, codes, {}).unflatten(1, (height, width)) > 0
    row, column = height - 1, width // 2
    field = seen[row * width + column].cpu()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    documented = (row - rows <= reach + 1) & (rows < row) & ((columns - column).abs() <= reach)
    documented |= (rows == row) & (columns < column) & (column - columns <= reach + 1)
    assert (field | ~documented).all()
    assert not field[(rows == row) & (columns >= column)].any()
    assert not field[(row - rows > reach + 1) | (columns - column > reach)].any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_module_works_in_place_and_repeated_passes_agree(kind: str, device: torch.device) -> None:
    case = Case((4, 5), classes=3, upper=(2, 5))
    prior = build(kind, case, device)
    assert in_place_modules(prior) == []
    codes, conditions = inputs(case, device)
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    first = prior.logits(codes, **conditions)
    assert torch.equal(first, prior.logits(codes, **conditions))
    first.sum().backward()  # an activation changed in place after it was saved would raise here
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())


@kinds
def test_labels_and_every_upper_code_matter(kind: str, device: torch.device) -> None:
    case = Case((4, 6), classes=3, upper=(2, 3))
    prior = build(kind, case, device)
    codes, conditions = inputs(case, device, batch=1)
    with torch.no_grad():
        usual = prior.logits(codes, **conditions)
        other_label = prior.logits(codes, (conditions["labels"] + 1) % 3, conditions["upper"])
        # From the first code on; PixelCNN and PixelSNAIL read it at every position, the Transformer too.
        assert ((usual - other_label).abs().amax(dim=1) > 0).all()
        for cell in range(6):
            upper = conditions["upper"].clone()
            upper.view(-1)[cell] = (upper.view(-1)[cell] + 1) % 4
            changed = (usual - prior.logits(codes, conditions["labels"], upper)).abs().amax(dim=1)[0] > 0
            row, column = divmod(cell, 3)
            assert changed[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].all()
