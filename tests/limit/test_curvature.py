"""Curvature operators against dense matrices by torch.func and torch.autograd.functional, and finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from structprune.limit.curvature import Curvature, GaussNewton, Hessian, LossAt
from tests.limit.small import Attention, Wrapped, at, batches, convolutional, dense, made, mlp


def logits_loss(output: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of the entry 'logits'."""
    return F.cross_entropy(output["logits"], targets)


def two_heads_loss(output: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of one output and a squared error of another."""
    return F.cross_entropy(output[0], targets) + (output[1] - 1).square().mean()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "mlp": (mlp, (4,), F.cross_entropy),
    "squares": (mlp, (4,), lambda output, target: (output - F.one_hot(target, 3)).square().mean()),
    "convolution": (convolutional, (1, 5, 5), F.cross_entropy),
    "attention": (Attention, (3, 4), F.cross_entropy),
    "dictionary": (lambda: Wrapped(mlp(), lambda y: {"logits": y, "size": len(y)}), (4,), logits_loss),
    "tuple": (lambda: Wrapped(mlp(), lambda y: (y, y.mean(1) ** 2)), (4,), two_heads_loss),
    "unused output": (lambda: Wrapped(mlp(), lambda y: {"logits": y, "more": y.sum()}), (4,), logits_loss),
}
cases = pytest.mark.parametrize("name", CASES)


def case(name: str) -> tuple[LossAt, Tensor]:
    """The loss and the weights of a case; the last batch is shorter than the others."""
    build, shape, loss = CASES[name]
    return at(made(build), batches(*shape), loss)


def whole_loss(loss: LossAt, vector: Tensor) -> Tensor:
    """Mean loss over all examples, differentiable by the weights."""
    weights = loss.layout.split(vector)
    parts = [loss.loss(loss.output(weights, inputs), targets) * count for inputs, targets, count in loss.batches]
    return torch.stack(parts).sum() / loss.examples


def dense_gauss_newton(loss: LossAt, here: Tensor) -> Tensor:
    """E[J' (d^2 loss / d output^2) J] written out."""
    total = torch.zeros(len(here), len(here), dtype=here.dtype)
    for inputs, targets, count in loss.batches:
        _, spec = torch.utils._pytree.tree_flatten(loss.output(loss.layout.split(here), inputs))

        def leaves(vector: Tensor, inputs: Any = inputs) -> list[Any]:
            return torch.utils._pytree.tree_leaves(loss.output(loss.layout.split(vector), inputs))

        fixed = leaves(here)
        floats = [i for i, leaf in enumerate(fixed) if isinstance(leaf, Tensor)]
        shapes = [fixed[i].shape for i in floats]

        def flat(vector: Tensor, leaves: Any = leaves, floats: list[int] = floats) -> Tensor:
            found = leaves(vector)
            return torch.cat([found[i].reshape(-1) for i in floats])

        def of_outputs(values: Tensor, spec: Any = spec, fixed: Any = fixed, shapes: Any = shapes) -> Tensor:
            parts = values.split([shape.numel() for shape in shapes])
            filled = list(fixed)
            for i, part, shape in zip(floats, parts, shapes, strict=True):  # noqa: B023 - called at once
                filled[i] = part.view(shape)
            return loss.loss(torch.utils._pytree.tree_unflatten(filled, spec), targets)  # noqa: B023

        with sdpa_kernel(SDPBackend.MATH):
            slopes = torch.func.jacrev(flat)(here)
        inner = torch.func.hessian(of_outputs)(flat(here))
        total += slopes.T @ inner @ slopes * (count / loss.examples)
    return total


@cases
def test_gauss_newton_is_the_dense_matrix(name: str) -> None:
    """Products with all unit vectors give J'HJ, batches weighted by their size."""
    loss, here = case(name)
    torch.testing.assert_close(dense(GaussNewton(loss, here), here), dense_gauss_newton(loss, here))


@cases
def test_hessian_is_the_dense_matrix(name: str) -> None:
    """Products with all unit vectors give the second derivative of the mean loss."""
    loss, here = case(name)
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.autograd.functional.hessian(lambda vector: whole_loss(loss, vector), here)
    torch.testing.assert_close(dense(Hessian(loss, here), here), expected)


@cases
def test_gauss_newton_has_no_negative_eigenvalue(name: str) -> None:
    """Where the loss is convex in the outputs the Gauss-Newton matrix is positive semidefinite."""
    loss, here = case(name)
    values = torch.linalg.eigvalsh(dense(GaussNewton(loss, here), here))
    assert float(values.min()) >= -1e-12 * float(values.max())


@cases
def test_gradient_is_the_slope(name: str) -> None:
    """Central differences of the loss along random directions give the gradient's product with them."""
    loss, here = case(name)
    slope = loss.gradient(here)
    for seed in range(3):
        direction = torch.randn(len(here), generator=torch.Generator().manual_seed(seed), dtype=here.dtype)
        moved = (loss(here + 1e-5 * direction) - loss(here - 1e-5 * direction)) / 2e-5
        assert float(slope @ direction) == pytest.approx(moved, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("make", [GaussNewton, Hessian])
def test_hessian_products_are_differences_of_gradients(make: Callable[[LossAt, Tensor], Curvature]) -> None:
    """For outputs linear in the weights both operators are the change of the gradient along a direction."""
    loss, here = at(made(lambda: nn.Linear(4, 3)), batches(4))
    direction = torch.randn(len(here), generator=torch.Generator().manual_seed(0), dtype=here.dtype)
    moved = (loss.gradient(here + 1e-5 * direction) - loss.gradient(here - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(make(loss, here)(direction), moved, rtol=1e-5, atol=1e-9)


def test_batches_count_by_their_size() -> None:
    """Examples in one batch or in ragged ones make the same loss, gradient and curvature."""
    model, ragged = made(mlp), batches(4, sizes=(7, 7, 2))
    whole = [(torch.cat([x for x, _ in ragged]), torch.cat([y for _, y in ragged]))]
    (one, here), (other, _) = at(model, ragged), at(model, whole)
    assert one(here) == pytest.approx(other(here))
    torch.testing.assert_close(one.gradient(here), other.gradient(here))
    for make in (GaussNewton, Hessian):
        torch.testing.assert_close(make(one, here)(here), make(other, here)(here))


def test_a_weight_that_is_not_used_has_no_curvature() -> None:
    """A parameter on which no output depends gets zeros, not an error."""
    model = made(mlp)
    model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    loss, here = at(model, batches(4))
    place = loss.layout.place("idle")
    for operator in (GaussNewton(loss, here), Hessian(loss, here)):
        assert not bool(operator(torch.ones_like(here))[place].any())
    assert not bool(loss.gradient(here)[place].any())


def test_tied_weights_are_one() -> None:
    """A weight used twice is one part of the vector, and its curvature that of both uses."""
    model = made(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)))
    model[2].weight = model[0].weight  # type: ignore[index, union-attr]
    loss, here = at(model, batches(3))
    assert len(here) == 9 + 3 + 3
    expected = torch.autograd.functional.hessian(lambda vector: whole_loss(loss, vector), here)
    torch.testing.assert_close(dense(Hessian(loss, here), here), expected)


def test_products_leave_the_network_alone() -> None:
    """Weights, gradients and modes of the network are those from before."""
    model = made(convolutional)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loss, here = at(model, batches(1, 5, 5))
    for operator in (GaussNewton(loss, here), Hessian(loss, here)):
        operator(torch.ones_like(here))
    assert all(bool((tensor == before[name]).all()) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize(("make", "name"), [(GaussNewton, "GGNLinearOperator"), (Hessian, "HessianLinearOperator")])
def test_products_agree_with_curvlinops(make: Callable[[LossAt, Tensor], Curvature], name: str) -> None:
    """A library of curvature operators gives the same products, where it is installed."""
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")
    model, data = made(mlp), batches(4)
    loss, here = at(model, data)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    theirs = getattr(curvlinops, name)(model, torch.nn.CrossEntropyLoss(), parameters, data, check_deterministic=False)
    vector = torch.randn(len(here), generator=torch.Generator().manual_seed(0)).to(here)
    assert torch.allclose(make(loss, here)(vector), theirs @ vector, rtol=1e-4, atol=1e-8)
