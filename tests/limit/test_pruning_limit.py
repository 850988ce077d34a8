"""The one call: what it does not change, what it does not depend on, what it warns of and refuses."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import structprune.limit.lanczos as lanczos
from structprune.limit import Limit, pruning_limit
from structprune.structures import Structures, blocks, channels
from tests.limit.small import Data, batches, convolutional, made, mlp, trained

QUICK: dict[str, Any] = {"progress": False, "probes": 2, "steps": 12, "epsilon": 0.05}


def keep_fractions(limit: Limit) -> list[tuple[float, float, float]]:
    """Every estimate with its interval."""
    return [(e.keep_fraction.low, e.keep_fraction.value, e.keep_fraction.high) for e in limit.estimates]


def limit_of(kind: str = "weights", **options: Any) -> Limit:
    """The limit of a network at rest."""
    model, data = trained()
    structures: Structures | None = None
    if kind == "channels":
        structures = channels(model, data[0][0])
    elif kind == "blocks":
        structures = blocks(model, (1, 3), example=data[0][0])
    return pruning_limit(model, data, structures=structures, **{**QUICK, **options})


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "layerwise"])
@pytest.mark.parametrize("kind", ["weights", "channels", "blocks"])
def test_every_curvature_limits_every_kind(kind: str, curvature: str) -> None:
    """All estimators answer, between what always stays and everything, with what they rest on told."""
    found = limit_of(kind, curvature=curvature)
    assert [one.name for one in found.estimates] == ["paper", "generic", "trust 0.05", "trust 0.1", "constructive"]
    for low, value, high in keep_fractions(found):
        assert found.free / found.weights - 1e-12 <= low <= value <= high <= 1
    assert (found.kind, found.curvature) == (kind, curvature)
    assert found.dimension.low <= found.dimension.value <= found.dimension.high <= found.weights
    assert (found.stationarity is None) == (curvature == "layerwise") == bool(found.layers)


def test_equal_seeds_give_equal_limits() -> None:
    """Everything but the time it took is the same, and another seed draws other probes."""
    one, same = (limit_of(seed=1, epsilon="batch_std") for _ in range(2))
    assert replace(one, seconds=0.0) == replace(same, seconds=0.0)
    assert one.dimension != limit_of(seed=2, estimators=("paper",)).dimension


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_the_unit_of_the_loss_does_not_matter(curvature: str) -> None:
    """The loss and epsilon times a common factor leave every limit as it is."""
    factor = 4.0  # a power of two, so that nothing is rounded

    def scaled(output: Tensor, targets: Tensor) -> Tensor:
        return factor * F.cross_entropy(output, targets)

    model, data = trained()
    one = pruning_limit(model, data, F.cross_entropy, curvature=curvature, **QUICK)
    other = pruning_limit(model, data, scaled, curvature=curvature, **{**QUICK, "epsilon": factor * 0.05})
    assert keep_fractions(one) == keep_fractions(other)


def permuted(model: nn.Module) -> nn.Module:
    """The same function with its hidden units in another order."""
    found = copy.deepcopy(model)
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        found[0].weight.copy_(model[0].weight[order])  # type: ignore[index, union-attr, operator, arg-type]
        found[0].bias.copy_(model[0].bias[order])  # type: ignore[index, union-attr, operator, arg-type]
        found[2].weight.copy_(model[2].weight[:, order])  # type: ignore[index, union-attr, operator, arg-type]
    return found


@pytest.mark.parametrize("curvature", ["ggn", "layerwise"])
def test_the_order_of_hidden_units_does_not_matter(curvature: str) -> None:
    """Permuting hidden units leaves the structured limits as they are; laws by random probes are left out."""
    model, data = trained()
    options = {**QUICK, "curvature": curvature}
    if curvature == "ggn":
        options["estimators"] = ("trust", "constructive")
    one, other = (
        pruning_limit(network, data, structures=channels(network, data[0][0]), **options)
        for network in (model, permuted(model))
    )
    assert keep_fractions(one) == keep_fractions(other)


def test_more_epsilon_never_keeps_more() -> None:
    """Every estimate, each end of its interval included, falls with epsilon."""
    found = [keep_fractions(limit_of(epsilon=epsilon)) for epsilon in (0.005, 0.05, 0.5)]
    for smaller, larger in zip(found[:-1], found[1:], strict=True):
        assert all(b <= a for one, other in zip(smaller, larger, strict=True) for a, b in zip(one, other, strict=True))


def test_known_eigenvalues_and_a_given_epsilon_leave_no_interval() -> None:
    """Layer-wise curvature is exact: with an epsilon in nats no estimate has a width."""
    assert all(low == value == high for low, value, high in keep_fractions(limit_of(curvature="layerwise")))


def test_the_network_is_left_alone() -> None:
    """Weights, gradients, modes, buffers and hooks of the network are those from before."""
    model, data = made(convolutional), batches(1, 5, 5, sizes=(6, 6, 6))
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[index, union-attr, arg-type, assignment]
    model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    before = copy.deepcopy(model.state_dict())
    for curvature in ("ggn", "hessian", "layerwise"):
        pruning_limit(model, data, curvature=curvature, structures=channels(model, data[0][0]), **QUICK)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(bool((before[name] == after[name]).all()) for name in before)
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 4]
    assert [p.grad is not None for p in model.parameters()] == [True, *[False] * 5]
    assert bool((model[0].weight.grad == 1).all())  # type: ignore[index, union-attr]
    assert not any(module.training or module._forward_hooks for module in model.modules())


def test_a_frozen_weight_is_pruned_like_any_other() -> None:
    """Whether a parameter asks for gradients does not change the limit."""
    model, data = trained()
    frozen = copy.deepcopy(model).requires_grad_(False)
    one, other = (pruning_limit(which, data, estimators=("paper", "trust"), **QUICK) for which in (frozen, model))
    assert keep_fractions(one) == keep_fractions(other)


def test_a_network_that_is_not_at_rest_is_warned_about() -> None:
    """An untrained network has values and a warning; layer-wise curvature compares layers and gives none."""
    model, data = made(lambda: mlp(6)), trained()[1]
    found = pruning_limit(model, data, **{**QUICK, "epsilon": 1e-3})
    assert len(found.estimates) == 5
    assert any("not at rest" in text for text in found.warnings)
    assert not pruning_limit(model, data, curvature="layerwise", **{**QUICK, "epsilon": 1e-3}).warnings


def test_a_network_at_rest_is_not_warned_about() -> None:
    """A converged network's second-order step gains less than a tenth of epsilon."""
    found = limit_of()
    assert found.stationarity is not None
    assert found.stationarity < 0.005
    assert found.warnings == ()


def test_dead_weights_are_counted_apart() -> None:
    """Weights of zero on an input that is always zero are told as dead and do not carry the laws."""
    model, data = trained()
    wide = made(lambda: mlp(8, 5))
    with torch.no_grad():
        for own, small in zip(wide.parameters(), model.parameters(), strict=True):
            own.zero_()
            own[tuple(slice(size) for size in small.shape)] = small
    padded: Data = [(F.pad(x, (0, 2)), y) for x, y in data]
    one, other = (
        pruning_limit(network, given, curvature="layerwise", estimators=("paper", "generic"), **QUICK)
        for network, given in ((model, data), (wide, padded))
    )
    assert (one.dead, other.dead) == (0, 10)
    # The dead ones are the first to go and the last that a keep fraction should rest on.
    assert [e.kept for e in other.estimates] == [e.kept for e in one.estimates]


def test_free_weights_are_kept_by_every_estimate() -> None:
    """Weights named free are counted as such and as kept."""
    found = limit_of(free=("2",), epsilon=5.0)
    assert found.free == 5 + 15 + 3
    assert all(one.kept >= found.free for one in found.estimates)


def test_everything_may_go_where_everything_is_allowed() -> None:
    """With an epsilon above any loss and biases of zero, nothing but those biases is left, and nothing breaks."""
    model, data = trained()
    flat = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in flat.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
    found = pruning_limit(flat, data, **{**QUICK, "epsilon": 1e3})
    assert {one.kept for one in found.estimates} == {found.free}
    assert found.movement == 0


def test_uniform_networks_need_no_estimators_that_were_not_asked_for() -> None:
    """Only what was asked for is computed, in the order asked for."""
    found = limit_of(estimators=("generic", "paper"))
    assert [one.name for one in found.estimates] == ["generic", "paper"]
    assert found.movement is None
    assert found.model_error is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ("papers",)}, "Expected estimators out of.*papers"),
        ({"estimators": "paper"}, "Pass a tuple"),
        ({"estimators": ()}, "Expected estimators"),
        ({"curvature": "fisher"}, "Expected curvature to be one of.*fisher"),
        ({"epsilon": "std"}, "Expected epsilon.*'std'"),
        ({"epsilon": -0.1}, "Expected epsilon > 0"),
        ({"probes": 0}, "Expected probes to be an integer >= 1. Got 0"),
        ({"steps": 2.5}, "Expected steps to be an integer"),
        ({"tau": ()}, "Expected radii"),
        ({"tau": (-0.1,)}, "Expected radii"),
        ({"confidence": 95}, "Expected confidence between 0 and 1"),
        ({"free": ("head",)}, "matches none"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    """Every setting is refused by its name, with what to pass."""
    with pytest.raises(ValueError, match=message):
        limit_of(**options)


def test_memory_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A basis that does not fit is refused before it is made."""
    monkeypatch.setattr(lanczos, "available_memory", lambda device: 4000)
    with pytest.raises(MemoryError, match="Expected room for a Lanczos basis of 12 x"):
        limit_of()


def test_what_needs_no_basis_is_not_refused_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out that the refusal names works: laws on layer-wise curvature take no basis."""
    monkeypatch.setattr(lanczos, "available_memory", lambda device: 4000)
    with pytest.raises(MemoryError, match="curvature='layerwise' and estimators=\\('paper', 'generic'\\)"):
        limit_of(curvature="layerwise")
    found = limit_of(curvature="layerwise", estimators=("paper", "generic"))
    assert found.memory_bytes == 0
