"""Gradients: float64 gradcheck with the indices held fixed, and the estimators against their papers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import vq_kernels as vq
from vq_kernels.backends import QuantizeOptions, get_backend
from vq_kernels.operators.second_order import gradient_for_x


def fixed_indices_truth(
    x: Tensor, codebook: Tensor, indices: Tensor, channel_dim: int, weights: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Straight-through output and both losses written out with autograd's own stop-gradients."""
    quantized = codebook[indices]
    quantized = quantized.movedim(-1, 1) if channel_dim == 1 else quantized
    loss = weights[0] * (quantized.detach() - x).square().mean()
    loss = loss + weights[1] * (quantized - x.detach()).square().mean()
    return x + (quantized - x).detach(), loss


@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((7, 5), -1), ((2, 3, 5), -1), ((2, 5, 3), 1), ((2, 5, 2, 3), 1)]
)
def test_straight_through_and_losses(
    shape: tuple[int, ...], channel_dim: int, backend: str, device: torch.device
) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    codebook = torch.randn(9, 5, dtype=dtype, device=device, requires_grad=True)
    got = vq.vector_quantize(
        x, codebook, commitment_weight=0.3, codebook_weight=0.7, channel_dim=channel_dim, backend=backend
    )
    quantized, loss = fixed_indices_truth(x, codebook, got.indices, channel_dim, (0.3, 0.7))
    upstream = torch.randn_like(quantized)
    got_grads = torch.autograd.grad((got.quantized * upstream).sum() + 2 * got.loss, [x, codebook])
    want_grads = torch.autograd.grad((quantized * upstream).sum() + 2 * loss, [x, codebook])
    torch.testing.assert_close(got.loss, loss)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_gradcheck_of_the_losses(channel_dim: int) -> None:
    """Far from any boundary between cells the loss is smooth, and numerical differences see all of it.

    One weight at a time: the stop-gradients make the two-weight loss's gradient differ from that of
    its value by design, so x is checked with the codebook term off and the codebook the other way.
    """
    codebook = 10 * torch.randn(6, 4, dtype=torch.float64)
    indices = torch.randint(0, 6, (2, 5))
    x = codebook[indices] + 0.1 * torch.randn(2, 5, 4, dtype=torch.float64)
    x = x.movedim(-1, 1).contiguous() if channel_dim == 1 else x

    def commitment(x: Tensor) -> Tensor:
        return vq.vector_quantize(x, codebook, commitment_weight=0.4, channel_dim=channel_dim).loss

    def codebook_loss(codebook: Tensor) -> Tensor:
        return vq.vector_quantize(
            x, codebook, commitment_weight=0.0, codebook_weight=0.8, channel_dim=channel_dim
        ).loss

    assert gradcheck(commitment, (x.clone().requires_grad_(),))
    assert gradcheck(codebook_loss, (codebook.clone().requires_grad_(),))


def test_gradcheck_of_gather(backend: str, device: torch.device) -> None:
    indices = torch.randint(0, 7, (3, 5), device=device)
    for channel_dim in (-1, 1):
        if backend == "reference":
            codebook = torch.randn(7, 4, dtype=torch.float64, device=device, requires_grad=True)
            assert gradcheck(lambda e: vq.gather_codes(e, indices, channel_dim=channel_dim), (codebook,))  # noqa: B023
        codebook = torch.randn(7, 4, device=device, requires_grad=True)
        out = vq.gather_codes(codebook, indices, channel_dim=channel_dim, backend=backend)
        upstream = torch.randn_like(out)
        (got,) = torch.autograd.grad(out, codebook, upstream)
        rows = upstream.movedim(channel_dim, -1).reshape(-1, 4)
        want = torch.zeros(7, 4, device=device).index_add_(0, indices.reshape(-1), rows)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_gather_has_every_order(channel_dim: int) -> None:
    """Gathered codes are linear in the codebook: what is made of them has its own second derivatives."""
    indices = torch.tensor([[0, 1, 1], [3, 3, 1]])
    codebook = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def ours(codes: Tensor) -> Tensor:
        return (vq.gather_codes(codes, indices, channel_dim=channel_dim) ** 4).sum()

    def torchs(codes: Tensor) -> Tensor:
        return (codes[indices].movedim(-1, channel_dim) ** 4).sum()

    assert gradgradcheck(ours, (codebook,))
    leaf = codebook.detach().float().requires_grad_()
    orders = []
    for function in (ours, torchs):
        (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
        (third,) = torch.autograd.grad(second.square().sum(), leaf)
        hessian = torch.func.hessian if function is torchs else _twice_reverse
        orders.append((first, second, third, hessian(function)(leaf.detach())))
    for got, want in zip(*orders, strict=True):
        torch.testing.assert_close(got, want)


def _twice_reverse(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.func.jacrev(torch.func.jacrev(function))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_single_rows_one_by_one() -> None:
    x, codebook = torch.randn(5, 8), torch.randn(16, 8)
    each = torch.func.grad(lambda row: vq.vector_quantize(row, codebook).loss)
    got = torch.vmap(each)(x)
    torch.testing.assert_close(got, torch.stack([each(row) for row in x]))
    assert (got != 0).any()


def test_statistics_may_be_written_to_where_no_gradient_reads_them() -> None:
    x = torch.randn(20, 8, requires_grad=True)
    out = vq.vector_quantize(x, torch.randn(16, 8))
    (want,) = torch.autograd.grad(out.loss, x, retain_graph=True)
    out.sums.mul_(2)
    out.counts.zero_()
    assert torch.equal(torch.autograd.grad(out.loss, x)[0], want)


def test_gather_backward_is_bitwise_reproducible(backend: str, device: torch.device) -> None:
    codebook = torch.randn(5, 8, device=device, requires_grad=True)
    indices = torch.randint(0, 5, (999,), device=device)
    upstream = torch.randn(999, 8, device=device)
    grads = [
        torch.autograd.grad(vq.gather_codes(codebook, indices, backend=backend), codebook, upstream)[0]
        for _ in range(3)
    ]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def rotate(x: Tensor, e: Tensor) -> Tensor:
    """arXiv:2410.06424, section 4.2, with the explicit D x D rotation R: |e|/|x| R x, whose value is e."""
    u, q = x / x.norm(), e / e.norm()
    w = (u + q) / (u + q).norm()
    rotation = (
        torch.eye(len(x), dtype=x.dtype, device=x.device) - 2 * torch.outer(w, w) + 2 * torch.outer(q, u)
    )
    return (e.norm() / x.norm()).detach() * (rotation.detach() @ x)


def test_rotation_trick(backend: str, device: torch.device) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    x = torch.randn(11, 5, dtype=dtype, device=device, requires_grad=True)
    codebook = torch.randn(6, 5, dtype=dtype, device=device)
    got = vq.vector_quantize(x, codebook, gradient="rotation_trick", commitment_weight=0.0, backend=backend)
    assert torch.equal(got.quantized, codebook[got.indices])
    want = torch.stack([rotate(a, codebook[i]) for a, i in zip(x, got.indices, strict=True)])
    torch.testing.assert_close(want, got.quantized)
    upstream = torch.randn_like(want)
    (got_grad,) = torch.autograd.grad(got.quantized, x, upstream)
    (want_grad,) = torch.autograd.grad(want, x, upstream)
    torch.testing.assert_close(got_grad, want_grad)


def test_rotation_trick_stays_finite_at_zero(backend: str, device: torch.device) -> None:
    x = torch.zeros(3, 4, device=device, requires_grad=True)
    for codebook in (torch.zeros(2, 4, device=device), torch.ones(2, 4, device=device)):
        got = vq.vector_quantize(x, codebook, gradient="rotation_trick", backend=backend)
        (grad,) = torch.autograd.grad(got.quantized.sum() + got.loss, x)
        assert grad.isfinite().all()


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)], ids=["codebook_only", "commitment_only"])
def test_each_weight_moves_its_own_side(
    weights: tuple[float, float], backend: str, device: torch.device
) -> None:
    """Peers put beta on the codebook term instead of the commitment term."""
    x = torch.randn(8, 3, device=device, requires_grad=True)
    codebook = torch.randn(5, 3, device=device, requires_grad=True)
    got = vq.vector_quantize(
        x, codebook, commitment_weight=weights[0], codebook_weight=weights[1], backend=backend
    )
    grads = torch.autograd.grad(got.loss, [x, codebook], allow_unused=True)
    moved = [g is not None and bool((g != 0).any()) for g in grads]
    assert moved == [bool(weights[0]), bool(weights[1])]


def test_low_precision_backward_computes_in_float32(backend: str, device: torch.device) -> None:
    codebook = torch.randn(5, 8, device=device)
    x = (codebook[torch.randint(0, 5, (40,), device=device)] + 1e-2).to(torch.bfloat16).requires_grad_()
    got = vq.vector_quantize(x, codebook, commitment_weight=320.0, backend=backend)
    (grad,) = torch.autograd.grad(got.loss, x)
    want = (2 * 320.0 / x.numel() * (x.float() - codebook[got.indices])).to(torch.bfloat16)
    torch.testing.assert_close(grad, want, rtol=8e-3, atol=0.0)


def test_kept_codes_may_be_overwritten_before_the_backward_pass(backend: str, device: torch.device) -> None:
    codebook = torch.randn(9, 5, device=device)
    for keep in (False, True):
        x = torch.randn(2, 7, 5, device=device, requires_grad=True)
        codes = codebook.clone()
        out = vq.vector_quantize(x, codes, keep_codes=keep, backend=backend)
        (want,) = torch.autograd.grad(out.loss, x, retain_graph=True)
        codes.zero_()
        if not keep:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                out.loss.backward()
            continue
        (got,) = torch.autograd.grad(out.loss, x)
        assert torch.equal(got, want)
        assert want.abs().sum() > 0


@pytest.mark.parametrize("how", ["torch", "numpy"])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
def test_indices_that_were_changed_do_not_change_the_gradient(how: str, gradient: str) -> None:
    """Adding an offset to them is usual where several codebooks share one embedding."""
    x, codebook = torch.randn(50, 8), torch.randn(16, 8)
    grads = []
    for changed in (False, True):
        leaf = x.clone().requires_grad_()
        out = vq.vector_quantize(leaf, codebook, gradient=gradient)
        if changed and how == "torch":
            out.indices.add_(1 << 40)
        elif changed:
            out.indices.numpy()[:] = 1 << 40
        (out.loss + out.quantized.square().sum()).backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


def test_an_operator_that_is_run_by_a_program_checks_the_indices_it_kept() -> None:
    x, codebook, one = torch.randn(5, 8), torch.randn(16, 8), torch.ones(())
    args = (torch.tensor([0, 1, 16, 2, -1]), torch.tensor(4), 0.1, "straight_through", -1, None)
    with pytest.raises(ValueError, match="indices holds 16; accepted: -1 to 15"):
        torch.ops.vq_kernels.vector_quantize_backward(x, one, x, codebook, *args)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
@pytest.mark.parametrize("channels_first", [False, True], ids=["rows", "channel_first"])
def test_an_index_that_names_no_code_gives_nan_and_reads_nothing(
    gradient: str, channels_first: bool, backend: str, device: torch.device
) -> None:
    """Where the host cannot see that indices were written to since the forward pass, as on a GPU."""
    x, g, codebook = torch.randn(2, 40, 5), torch.randn(2, 40, 5), torch.randn(6, 5)
    if channels_first:
        x, g = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, g))
    indices = torch.randint(0, 6, (2, 40))
    indices[0, 3:5] = -1
    changed = indices.clone()
    changed[1, :6] = torch.tensor([6, 1 << 40, -2, -(1 << 40), 9, 1 << 62])
    kernels = get_backend(backend)
    for grads in ((g, torch.tensor(0.7)), (None, torch.tensor(0.7)), (g, None)):
        outs = []
        for each in (indices, changed):
            out = torch.empty_like(x).fill_(7.0)
            args = (x, codebook, each, torch.tensor(78), 0.3)
            tensors = [t.to(device) if isinstance(t, Tensor) else t for t in (*grads, *args)]
            out = out.to(device)
            kernels.vector_quantize_backward(*tensors, gradient, out)
            outs.append(out.cpu())
        want, got = outs
        assert got[1, :6].isnan().all()
        assert (got[0, 3:5] == 0).all()
        assert want.isfinite().all()
        want[1, :6] = torch.nan
        assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
        options = QuantizeOptions("l2", "exact", -1, True, False, None, gradient, 0.3 * 5 / 2)
        second = gradient_for_x(*grads, x, codebook, changed, torch.tensor(78), options)
        torch.testing.assert_close(second, want, equal_nan=True)


def test_statistics_leave_out_rows_whose_index_names_no_code(backend: str, device: torch.device) -> None:
    """The backward pass of gather_codes is made of them."""
    x, indices = torch.randn(1, 80, 5, device=device), torch.randint(0, 6, (1, 80), device=device)
    changed = indices.clone()
    changed[0, :6] = torch.tensor([6, 1 << 40, -2, -(1 << 40), 9, 1 << 62])
    for skip in (True, False):
        got = get_backend(backend).code_statistics(x, changed, 6, skip)
        want = get_backend(backend).code_statistics(x[:, 6:], indices[:, 6:].contiguous(), 6, skip)
        assert torch.equal(got[0], want[0])
        torch.testing.assert_close(got[1], want[1])


@pytest.mark.parametrize("gradient", ["straight_through", "rotation_trick"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("channel_dim", [-1, 1])
def test_a_gradient_penalty_has_the_losses_second_order(
    gradient: str, masked: bool, channel_dim: int
) -> None:
    """Against the estimator and the loss written out with autograd's own stop-gradients."""
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    codebook = torch.randn(11, x.shape[channel_dim], dtype=torch.float64)
    shape = x.movedim(channel_dim, -1).shape[:-1]
    mask = torch.rand(shape) < 0.6 if masked else None
    weights = torch.randn_like(x)
    penalties = []
    for ours in (True, False):
        leaf, codes = x.clone().requires_grad_(), codebook.clone().requires_grad_()
        out = vq.vector_quantize(
            leaf, codes, gradient=gradient, channel_dim=channel_dim, mask=mask,
            commitment_weight=0.3, codebook_weight=0.7,
        )  # fmt: skip
        quantized, loss = out.quantized, out.loss
        if not ours:
            rows = leaf.movedim(channel_dim, -1)
            e = codes[out.indices.clamp(min=0)]
            valid = (out.indices >= 0).unsqueeze(-1)
            count = valid.sum() * codebook.shape[1]
            loss = 0.3 * torch.where(valid, (e.detach() - rows).square(), 0).sum() / count
            loss = loss + 0.7 * torch.where(valid, (e - rows.detach()).square(), 0).sum() / count
            if gradient == "straight_through":
                through = rows + (e - rows).detach()
            else:
                u = torch.nn.functional.normalize(rows.detach(), dim=-1)
                q = torch.nn.functional.normalize(e.detach(), dim=-1)
                w = torch.nn.functional.normalize(u + q, dim=-1)
                inner = lambda a, b: (a * b).sum(-1, keepdim=True)  # noqa: E731
                through = rows - 2 * inner(rows, w) * w + 2 * inner(rows, u) * q
                through = through * (e.norm(dim=-1, keepdim=True) / rows.norm(dim=-1, keepdim=True)).detach()
            quantized = torch.where(valid, through, 0).movedim(-1, channel_dim)
        value = loss + (quantized.sin() * weights).sum()
        first = torch.autograd.grad(value, [leaf, codes], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        penalties.append((*first, *torch.autograd.grad(penalty, [leaf, codes])))
    for got, want in zip(*penalties, strict=True):
        torch.testing.assert_close(got, want)


def test_forward_mode_is_refused() -> None:
    """The operators have no forward derivative; zeros would be passed on in silence."""
    x, codebook = torch.randn(5, 4), torch.randn(7, 4)
    for function, primal in (
        (lambda t: vq.vector_quantize(t, codebook).loss, x),
        (lambda t: vq.vector_quantize(x, t, codebook_weight=1.0).loss, codebook),
        (lambda t: vq.gather_codes(t, torch.tensor([0, 3])), codebook),
    ):
        for transform in (
            lambda f, p: torch.func.jvp(f, (p,), (torch.ones_like(p),)),
            lambda f, p: torch.func.jacfwd(f)(p),
        ):
            with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
                transform(function, primal)
