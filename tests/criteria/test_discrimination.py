"""Discrimination-aware gains: identities with group OMP, planted classes, gradients, heads and who owns what."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.group_omp import GroupOMP
from solvers.least_squares import LeastSquares
from solvers.moment_least_squares import MomentLeastSquares
from solvers.oracle import State
from structprune.axes import RULES, propagate, trace
from structprune.axes.linear_maps import linear_maps
from structprune.axes.propagate import LabelledGraph
from structprune.axes.rewrite import rewrite
from structprune.axes.sweep import Sweep
from structprune.criteria.auxiliary import AuxiliaryHead, Objective, bottlenecks, final_objective, spread
from structprune.criteria.discrimination import Discrimination, DiscriminationOracle, parts_at
from structprune.criteria.owners import Owned, owned_by
from structprune.criteria.refit import fitted_maps
from structprune.criteria.span import Span
from structprune.methods.picking import Picking
from structprune.structures import Structures, channels, kernels
from structprune.tensors import first_names, named_tensors

EXACT = Discrimination(lam=0.0, damping=0.0, relative=False)


def owned(model: nn.Module, structures: Structures, number: int = 0) -> list[Owned]:
    """The maps of one axis."""
    assert structures.labelled is not None
    fitted = fitted_maps(structures, linear_maps(structures.labelled), first_names(model))
    return owned_by(structures, number, fitted, named_tensors(model), {})


def oracle_of(
    model: nn.Module,
    structures: Structures,
    inputs: Tensor,
    targets: Tensor,
    settings: Discrimination,
    number: int = 0,
    batch: int = 100,
    last: int | None = None,
) -> DiscriminationOracle:
    """The oracle of one axis of a network that is whole otherwise, with the network's own cross-entropy."""
    labelled = structures.labelled
    assert labelled is not None
    weights = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    maps = owned(model, structures, number)
    dense, pruned = (Sweep(labelled, dict(weights), inputs.split(batch)) for _ in range(2))
    stop = dense.new[maps[0].map.node]
    with torch.no_grad():
        for sweep in (dense, pruned):
            for node in sweep.flat.graph.nodes:
                if node.name == stop.name:
                    break
                sweep.advance(node)
    size = structures.axes[number].size
    parts = parts_at(maps, size, dense, pruned, settings, 0)
    objective = final_objective(labelled, F.cross_entropy)
    return DiscriminationOracle(parts, size, settings, pruned, targets.split(batch), objective, last)


# --- reconstruction alone: group OMP --------------------------------------------------------------------------------

GROUPS = 12


class Layer(nn.Module):
    """A hidden layer that passes its inputs on, and the linear layer that reads it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.first = nn.Linear(weight.shape[1], weight.shape[1], bias=False)
        self.second = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(weight.shape[1]))
            self.second.weight.copy_(weight)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def planted_layer(seed: int, keep: int = 4, noise: float = 1e-2) -> tuple[Layer, Tensor, np.ndarray]:
    """A layer whose outputs come from few of its twelve inputs but for a little noise in the weights."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(GROUPS) + 0.3 * rng.standard_normal((GROUPS, GROUPS))
    inputs = rng.standard_normal((400, GROUPS)) @ mixing
    support = np.zeros(GROUPS, dtype=bool)
    support[rng.choice(GROUPS, keep, replace=False)] = True
    weight = noise * rng.standard_normal((5, GROUPS))
    weight[:, support] += rng.standard_normal((5, keep))
    return Layer(torch.from_numpy(weight)), torch.from_numpy(inputs), support


@pytest.fixture(scope="module")
def layer_structures() -> Structures:
    """The hidden layer's axis, traced once: it is the same whatever the weights are."""
    return channels(planted_layer(0)[0], torch.zeros(2, GROUPS).double())


@pytest.mark.parametrize("seed", range(5))
def test_without_discrimination_it_is_group_omp(seed: int, layer_structures: Structures) -> None:
    """On a linear layer, picks and fits are those of group OMP on the layer's inputs and outputs."""
    model, inputs, _ = planted_layer(seed, noise=0.5)
    oracle = oracle_of(model, layer_structures, inputs, torch.zeros(400, dtype=torch.long), EXACT)
    with torch.no_grad():
        wanted = model(inputs).numpy()
    plain = LeastSquares(inputs.numpy(), wanted, np.arange(GROUPS)[:, None])
    mine, theirs = GroupOMP(6).solve(oracle), GroupOMP(6).solve(plain)
    assert mine.order.tolist() == theirs.order.tolist()
    assert np.allclose(mine.losses, theirs.losses * 2 / (400 * 5), rtol=1e-8)
    assert np.allclose(oracle.weights[0], plain.weights.T, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_planted_channels_are_recovered(seed: int, layer_structures: Structures) -> None:
    """Four of twelve channels made the layer's outputs."""
    model, inputs, support = planted_layer(seed)
    oracle = oracle_of(model, layer_structures, inputs, torch.zeros(400, dtype=torch.long), EXACT)
    assert np.array_equal(GroupOMP(4).solve(oracle).result.selection, support)


def test_the_residual_is_orthogonal_to_the_selected_channels_after_each_fit(layer_structures: Structures) -> None:
    """To 1e-8 of the products with the outputs themselves."""
    model, inputs, _ = planted_layer(0, noise=0.5)
    oracle = oracle_of(model, layer_structures, inputs, torch.zeros(400, dtype=torch.long), EXACT)
    with torch.no_grad():
        wanted = model(inputs).numpy()
    x, seen = inputs.numpy(), []

    def look(state: State) -> None:
        residual = wanted - x @ oracle.weights[0].T
        seen.append(np.abs(x[:, state.kept].T @ residual).max() / np.abs(x.T @ wanted).max())

    GroupOMP(8).solve(oracle, progress=look)
    assert len(seen) == 8
    assert max(seen) < 1e-8


# --- planted discrimination -----------------------------------------------------------------------------------------


def planted_classes(seed: int) -> tuple[nn.Module, Tensor, Tensor, np.ndarray]:
    """Three channels tell the class, nine of three times their spread tell nothing but fill the layer's outputs."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (600,), generator=generator)
    told = 4.0 * F.one_hot(targets, 3) - 4 / 3 + 0.9 * torch.randn(600, 3, generator=generator)
    spread_of_told = float(told.std())
    inputs = torch.cat([told, 3 * spread_of_told * torch.randn(600, 9, generator=generator)], 1)
    order = torch.randperm(12, generator=generator)
    inputs = inputs[:, order]
    passed, layer, last = nn.Linear(12, 12, bias=False), nn.Linear(12, 16, bias=False), nn.Linear(16, 3)
    with torch.no_grad():
        passed.weight.copy_(torch.eye(12))
        layer.weight.copy_(torch.randn(16, 12, generator=generator) / math.sqrt(12))
        # A classifier of the layer's outputs that looks at the class channels alone.
        back = torch.linalg.pinv(layer.weight)
        read = torch.zeros(3, 12)
        for channel, place in enumerate(order.tolist()):
            if place < 3:
                read[place, channel] = 2.0
        last.weight.copy_(read @ back)
        last.bias.zero_()
    return nn.Sequential(passed, layer, last), inputs, targets, (order < 3).numpy()


@pytest.fixture(scope="module")
def classes_structures() -> Structures:
    """The axes of the planted network, traced once."""
    return channels(planted_classes(0)[0], torch.zeros(2, 12))


@pytest.mark.parametrize("seed", range(10))
def test_only_discrimination_finds_the_channels_that_tell_the_class(seed: int, classes_structures: Structures) -> None:
    """Reconstruction alone takes none of the three class channels, with lam of 10 or 100 all three are taken."""
    model, inputs, targets, told = planted_classes(seed)
    structures = classes_structures
    number = next(n for n, axis in enumerate(structures.axes) if axis.size == 12)
    found = {}
    for lam in (0.0, 10.0, 100.0):
        settings = Discrimination(lam=lam, refits=2)
        oracle = oracle_of(model, structures, inputs, targets, settings, number, batch=600)
        found[lam] = int(told[GroupOMP(3).solve(oracle).result.selection].sum())
    assert found == {0.0: 0, 10.0: 3, 100.0: 3}


@pytest.mark.parametrize("seed", range(10))
def test_an_expansion_finds_the_channels_that_tell_the_class(seed: int, classes_structures: Structures) -> None:
    """The class channels are taken where discrimination counts, and the nuisance where it does not."""
    model, inputs, targets, told = planted_classes(seed)
    number = next(n for n, axis in enumerate(classes_structures.axes) if axis.size == 12)
    found = {}
    for lam in (0.0, 10.0, 100.0):
        oracle = oracle_of(model, classes_structures, inputs, targets, Discrimination(lam=lam), number, batch=600)
        found[lam] = int(told[Picking(expand=True).solve(oracle, 3).selection].sum())
    assert found == {0.0: 0, 10.0: 3, 100.0: 3}


# --- gradients and fits ---------------------------------------------------------------------------------------------


def small_network() -> nn.Sequential:
    """Convolutions with batch norm, in evaluation mode with statistics of their own."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    for name, tensor in named_tensors(model).items():
        if name in ("1.running_var", "4.running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
        elif name in ("1.running_mean", "1.bias", "4.running_mean", "4.bias"):
            nn.init.normal_(tensor, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("norm", ["group", "outputs"])
def test_gains_are_norms_of_the_gradient(norm: Literal["group", "outputs"]) -> None:
    """They agree with the gradient of the written-out loss, where weights are zero too."""
    model = small_network()
    inputs, targets = torch.randn(40, 3, 5, 5).double(), torch.randint(4, (40,))
    structures = channels(model, inputs[:2])
    settings = Discrimination(lam=0.7, norm=norm, damping=0.0, relative=False, rows_per_column=10_000)
    oracle = oracle_of(model, structures, inputs, targets, settings, batch=16)
    kept = np.array([True, False, True, False, False, False])
    oracle.fit(kept)
    tensors, before = oracle.tensors(), named_tensors(model)
    weight = tensors["3.weight"].clone().requires_grad_()
    with torch.no_grad():
        hidden, wanted = model[:3](inputs), model[:4](inputs)
    shift = (before["4.running_mean"] - tensors["4.running_mean"])[:, None, None]
    output = F.conv2d(hidden, weight, padding=1)
    normed = F.batch_norm(
        output, tensors["4.running_mean"], before["4.running_var"], before["4.weight"], before["4.bias"]
    )
    loss = (output + shift - wanted).square().mean() + 0.7 * F.cross_entropy(model[5:](normed), targets)
    (gradient,) = torch.autograd.grad(loss, weight)
    by_pair = gradient.square().sum((2, 3))
    expected = by_pair.sqrt().sum(0) if norm == "outputs" else by_pair.sum(0).sqrt()
    assert np.allclose(oracle.values(kept), expected.numpy(), rtol=1e-6)


def test_a_fit_never_ends_above_where_it_began() -> None:
    """More structures and more steps lower the loss of the whole, and no step raises it."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    structures = channels(model, inputs[:2])
    oracle = oracle_of(model, structures, inputs, targets, Discrimination(lam=3.0))
    path = GroupOMP(3).solve(oracle)
    assert (np.diff(path.losses) < 0).all()
    kept, more = np.ones(6, dtype=bool), Discrimination(lam=3.0, refits=5)
    assert oracle_of(model, structures, inputs, targets, more).fit(kept) <= oracle.fit(kept) + 1e-6


def test_everything_kept_is_the_dense_network() -> None:
    """Fitted without discrimination, the whole axis has its old weights."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    oracle = oracle_of(model, channels(model, inputs[:2]), inputs, targets, Discrimination(lam=0.0))
    assert oracle.fit(np.ones(6, dtype=bool)) == pytest.approx(0.0, abs=1e-9)
    assert torch.allclose(oracle.tensors()["3.weight"], named_tensors(model)["3.weight"], atol=1e-6)


def test_weights_may_reconstruct_in_the_end() -> None:
    """With ``reconstruct_last`` what stays are the weights of least squares on what discrimination has picked."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    structures = channels(model, inputs[:2])
    settings = Discrimination(lam=5.0, reconstruct_last=True)
    picked = oracle_of(model, structures, inputs, targets, settings)
    plain = oracle_of(model, structures, inputs, targets, Discrimination(lam=0.0))
    kept = np.arange(6) < 3
    picked.fit(kept)
    plain.fit(kept)
    assert not np.allclose(picked.weights[0], plain.weights[0])
    picked.settle(kept)
    assert np.allclose(picked.weights[0], plain.weights[0])


def test_the_last_fit_reconstructs_at_once_where_weights_are_to() -> None:
    """Known beforehand, it ends with the same picks and weights, and fewer examples go through the network."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    structures = channels(model, inputs[:2])
    settings = Discrimination(lam=2.0, reconstruct_last=True)
    plain = oracle_of(model, structures, inputs, targets, settings)
    known = oracle_of(model, structures, inputs, targets, settings, last=3)
    first, second = GroupOMP(3).solve(plain), GroupOMP(3).solve(known)
    plain.settle(first.result.selection)
    assert first.order.tolist() == second.order.tolist()
    assert np.allclose(plain.weights[0], known.weights[0])
    assert known.looked_at < plain.looked_at
    assert second.losses[-1] == pytest.approx(known._look(known.weights, known._batches)[0], rel=1e-9)


def test_passes_go_through_all_examples_in_turn() -> None:
    """With 20 examples a pass, each fit looks at the next ones, and no more than asked for."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    settings = Discrimination(lam=1.0, pass_examples=20)
    oracle = oracle_of(model, channels(model, inputs[:2]), inputs, targets, settings, batch=10)
    firsts = [float(oracle._turn()[0][1][0]) + 0.0 for _ in range(3)]
    again = float(oracle._turn()[0][1][0])
    assert again == firsts[0]
    oracle.fit(np.ones(6, dtype=bool))
    assert oracle.looked_at % 20 == 0
    assert oracle.looked_at <= 80


def test_an_expansion_is_that_of_the_loss() -> None:
    """Its losses are those of the quadratic form written out: gradient, and K-FAC at both ends, over all entries."""
    model, lam = small_network(), 0.7
    inputs, targets = torch.randn(40, 3, 5, 5).double(), torch.randint(4, (40,))
    structures = channels(model, inputs[:2])
    settings = Discrimination(lam=lam, damping=0.0, relative=False, rows_per_column=10_000)
    oracle = oracle_of(model, structures, inputs, targets, settings, batch=16)
    with torch.no_grad():
        columns = F.pad(F.unfold(model[:3](inputs), 3, padding=1), (0, 0, 0, 1), value=1.0).transpose(1, 2)
        wanted = model[:4](inputs)
    moment = torch.einsum("bpi,bpj->ij", columns, columns).numpy() / 40
    before = np.pad(named_tensors(model)["3.weight"].detach().flatten(1).numpy(), ((0, 0), (0, 1)))
    nothing = np.zeros_like(before)
    nothing[:, -1] = wanted.mean((0, 2, 3)).numpy()
    ends = []
    for weight in (before, nothing):
        output = torch.einsum("bpi,oi->bop", columns, torch.from_numpy(weight)).view(40, 5, 5, 5).requires_grad_()
        loss = F.cross_entropy(model[5:](model[4](output)), targets, reduction="sum")
        (found,) = torch.autograd.grad(loss, output)
        ends.append(found.flatten(2))
    slope = lam * torch.einsum("bop,bpi->oi", ends[0], columns).numpy() / 40
    products = sum(torch.einsum("bop,bqp->oq", one, one).numpy() for one in ends) / (2 * 40 * 25)
    form = np.kron(2 / (5 * 25) * np.eye(5) + lam * products, moment)
    expanded, written = MomentLeastSquares(oracle.expansion(), 6), []
    for places in ((0, 1, 2), (1, 4), (5,), ()):
        kept = np.isin(np.arange(6), places)
        stays = np.tile(np.append(np.repeat(kept, 9), True), 5)
        # The least of slope (V - W) + (V - W)' form (V - W) / 2 over V that are zero where nothing stays.
        right = (form @ before.ravel() - slope.ravel())[stays]
        least = -0.5 * right @ np.linalg.lstsq(form[np.ix_(stays, stays)], right, rcond=None)[0]
        written.append((expanded.fit(kept), least))
    ours, theirs = np.array(written).T
    assert np.allclose(np.diff(ours), np.diff(theirs), rtol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 2.0])
def test_the_expansion_is_searched_to_its_best_selection(lam: float) -> None:
    """Of all selections of three in six channels none has a lower expanded loss."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    oracle = oracle_of(model, channels(model, inputs[:2]), inputs, targets, Discrimination(lam=lam))
    expanded = MomentLeastSquares(oracle.expansion(), 6)
    losses = {}
    for places in itertools.combinations(range(6), 3):
        losses[places] = expanded.fit(np.isin(np.arange(6), places))
    found = Picking(expand=True).solve(oracle, 3)
    best = min(losses, key=lambda places: losses[places])
    assert tuple(np.flatnonzero(found.selection)) == best
    assert found.loss[3] == pytest.approx(losses[best], rel=1e-6)
    assert found.loss[0] == pytest.approx(expanded.fit(np.zeros(6, dtype=bool)), rel=1e-6)
    assert sorted(found.order[:3]) == list(best)


def test_two_looks_are_all_that_an_expansion_takes() -> None:
    """Besides the last fit, which reconstructs and goes forwards alone."""
    model = small_network()
    inputs, targets = torch.randn(60, 3, 5, 5).double(), torch.randint(4, (60,))
    settings = Discrimination(lam=1.0, reconstruct_last=True)
    oracle = oracle_of(model, channels(model, inputs[:2]), inputs, targets, settings, last=3)
    Picking(expand=True).solve(oracle, 3)
    assert oracle.looked_at == 120


@pytest.mark.parametrize(
    "changes",
    [{"lam": -1.0}, {"damping": 1.0}, {"refits": 0}, {"pass_examples": 0}, {"lam": math.inf}, {"norm": "none"}],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    """Where they enter, with what was expected."""
    with pytest.raises(ValueError, match="Expected"):
        replace(Discrimination(), **changes)


# --- parts of a network ---------------------------------------------------------------------------------------------


def labelled_of(model: nn.Module, *example: Tensor) -> LabelledGraph:
    """The traced network."""
    return propagate(trace(model, example), model, RULES)


def test_a_span_from_the_inputs_is_the_network() -> None:
    """All operators from the first on give the network's output, for another batch size too."""
    model = small_network()
    labelled = labelled_of(model, torch.randn(2, 3, 5, 5).double())
    flat, new = rewrite(labelled, np.zeros(0, dtype=np.int64))
    span = Span(labelled, flat, new, None, list(final_objective(labelled, F.cross_entropy).nodes))
    inputs = torch.randn(7, 3, 5, 5).double()
    with torch.no_grad():
        (found,) = span.run(named_tensors(model), [inputs])
        assert torch.allclose(found, model(inputs))


# --- heads ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Three residual blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1) for _ in range(3)])
        self.outer = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1) for _ in range(3)])
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = F.relu(x + outer(F.relu(inner(x))))
        return self.last(x.mean((2, 3)))


class Attention(nn.Module):
    """Two layers of attention over tokens with a mask that both read, pooled or per token."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.qkv = nn.ModuleList([nn.Linear(8, 24) for _ in range(2)])
        self.out = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.last = nn.Linear(8, 5)
        self.pooled = pooled

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
            x = x + out(mixed.transpose(1, 2).reshape(x.shape))
        return self.last(x.mean(1) if self.pooled else x)


def test_heads_stand_between_blocks() -> None:
    """Inside a residual block two activations are under way, so that heads look at the ends of blocks only."""
    model = Residual()
    labelled = labelled_of(model, torch.randn(2, 3, 5, 5))
    places = bottlenecks(labelled, linear_maps(labelled))
    assert sorted({place.done for place in places}) == [1, 3, 5, 7]
    assert {place.dim for place in places if len(place.shape) == 4} == {1}


def test_heads_cut_the_network_evenly() -> None:
    """Of eight maps, two heads want to stand behind 8/3 and 16/3 of them."""
    labelled = labelled_of(Residual(), torch.randn(2, 3, 5, 5))
    maps = linear_maps(labelled)
    assert [place.done for place in spread(bottlenecks(labelled, maps), 2, len(maps))] == [3, 5]


def test_more_heads_than_places_are_refused() -> None:
    """The message says how many there may be."""
    labelled = labelled_of(Residual(), torch.randn(2, 3, 5, 5))
    maps = linear_maps(labelled)
    with pytest.raises(ValueError, match="heads=4"):
        spread(bottlenecks(labelled, maps), 9, len(maps))


@pytest.mark.parametrize("pooled", [True, False])
def test_tokens_are_pooled_where_answers_are(pooled: bool) -> None:
    """A head on tokens answers once per example, or once per token where the network does; masks may pass by."""
    model = Attention(pooled)
    example = (torch.randn(3, 7, 8), torch.ones(3, 7, dtype=torch.bool))
    labelled = labelled_of(model, *example)
    maps = linear_maps(labelled)
    (place,) = spread(bottlenecks(labelled, maps), 1, len(maps))
    assert place.done == 2
    assert place.dim == 2
    answer = tuple(model(*example).shape)
    head = AuxiliaryHead.at(place, answer)
    assert tuple(head(torch.randn(3, 7, 8)).shape) == answer


def test_a_head_on_images_pools_their_pixels() -> None:
    """Batch norm, ReLU, mean, linear: nothing else."""
    head = AuxiliaryHead(4, 1, (5,), pooled=True).eval()
    mean = torch.randn(4)
    head.norm.load_state_dict({"running_mean": mean}, strict=False)
    x = torch.randn(6, 4, 3, 3)
    expected = head.linear(F.relu((x - mean[:, None, None]) / math.sqrt(1 + 1e-5)).mean((2, 3)))
    assert torch.allclose(head(x), expected, atol=1e-6)


def test_answers_for_pixels_are_refused() -> None:
    """A network that labels pixels has no head to offer, and the message says what to do."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    labelled = labelled_of(model, torch.randn(2, 3, 5, 5))
    place = bottlenecks(labelled, linear_maps(labelled))[-1]
    with pytest.raises(ValueError, match="heads=0"):
        AuxiliaryHead.at(place, (2, 2, 5, 5))


def test_an_objective_puts_outputs_together() -> None:
    """The network's own loss sees what the network returns."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    labelled = labelled_of(model, torch.randn(2, 3))
    objective: Objective = final_objective(labelled, F.cross_entropy)
    output, targets = torch.randn(6, 2), torch.randint(2, (6,))
    assert objective.value([output], targets) == F.cross_entropy(output, targets)


# --- who owns what -------------------------------------------------------------------------------------------------


def test_a_residual_channel_owns_columns_of_every_reader() -> None:
    """The stream is read by three inner convolutions and by the classifier."""
    model = Residual()
    structures = channels(model, torch.randn(2, 3, 5, 5))
    number = next(n for n, axis in enumerate(structures.axes) if axis.size == 4)
    found = owned(model, structures, number)
    assert [one.map.weight for one in found] == ["inner.0.weight", "inner.1.weight", "inner.2.weight", "last.weight"]
    assert found[0].owner.shape == (6, 36)
    assert found[0].owner[0].tolist() == np.repeat(np.arange(4), 9).tolist()
    assert found[3].owner[0].tolist() == [0, 1, 2, 3]


def test_a_head_of_attention_owns_its_part_of_the_projection_behind_it() -> None:
    """Two heads of four dimensions own four columns each."""
    model = Attention(pooled=True)
    structures = channels(model, (torch.randn(3, 7, 8), torch.ones(3, 7, dtype=torch.bool)))
    owners = [
        one.owner[0].tolist()
        for number, axis in enumerate(structures.axes)
        if axis.size == 2
        for one in owned(model, structures, number)
        if one.map.weight == "out.0.weight"
    ]
    assert owners == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_a_kernel_owns_its_taps_in_one_output() -> None:
    """Structures of a weight own entries, not whole columns."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 2))
    structures = kernels(model, example=torch.randn(2, 2, 5, 5))
    (one,) = owned(model, structures)
    assert one.owner.tolist() == np.repeat(np.arange(6), 9).reshape(3, 18).tolist()


def test_a_depthwise_convolution_passes_its_channels_on() -> None:
    """The pointwise convolution behind it is what reads them."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(45, 2)
    )
    structures = channels(model, torch.randn(2, 3, 5, 5))
    number = next(n for n, axis in enumerate(structures.axes) if axis.size == 4)
    assert [one.map.weight for one in owned(model, structures, number)] == ["2.weight"]


def test_entries_that_are_gone_belong_to_nobody() -> None:
    """A mask of other axes' removals marks them, whole outputs included."""
    model = Residual()
    structures = channels(model, torch.randn(2, 3, 5, 5))
    number = next(n for n, axis in enumerate(structures.axes) if axis.size == 4)
    assert structures.labelled is not None
    fitted = fitted_maps(structures, linear_maps(structures.labelled), first_names(model))
    mask = torch.ones(6, 4, 3, 3, dtype=torch.bool)
    mask[2] = False
    found = owned_by(structures, number, fitted, named_tensors(model), {"inner.0.weight": mask})
    assert (found[0].owner[2] == 4).all()
    assert (found[0].owner[1] < 4).all()
