"""Layer reconstruction against explicit least squares, planted networks and measured losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from structprune.axes.linear_maps import linear_maps
from structprune.compile import masked
from structprune.criteria import Fisher, LayerReconstruction, Scores, refit
from structprune.criteria.moments import Gather, output_sensitivity
from structprune.criteria.probing import MOST_EXAMPLES
from structprune.criteria.response import Response, response_behind
from structprune.structures import Structures, blocks, channels
from tests import laws
from tests.cases import BY_NAME, unsettle

EXACT = LayerReconstruction(damping=1e-9, probes=0)


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance of each example, mean over examples: nats of a Gaussian with unit variance."""
    return (output - target).square().sum(1).mean() / 2


def regression(hidden: int = 12, outputs: int = 4, examples: int = 400) -> tuple[nn.Sequential, Tensor]:
    """Two linear layers with a kink between, in float64, and correlated inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    unsettle(model).double().eval()
    return model, torch.randn(examples, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)


def output_costs(model: nn.Module, structures: Structures, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """What a squared error in each output of the last map costs."""
    assert structures.labelled is not None
    maps = linear_maps(structures.labelled)
    return output_sensitivity(structures.labelled, model, maps, data, half_square, 1024, 0)[maps[-1].node]


def keep_first(scores: Scores, structures: Structures, width: int, axis: int = 0) -> np.ndarray:
    """The selection that cuts one axis to its best ``width`` by its curve."""
    selection = np.ones(structures.n, dtype=bool)
    order = scores.curves[axis].order
    selection[structures.axes[axis].start + order[width:]] = False
    return selection


def refitted(model: nn.Module, structures: Structures, scores: Scores, selection: np.ndarray) -> nn.Module:
    """The masked network with the criterion's weights."""
    assert scores.refit is not None
    return masked(model, structures, selection, scores.refit(selection))


def error(model: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """Mean squared difference of the outputs."""
    return float((laws.outputs(model, inputs) - laws.outputs(other, inputs)).square().mean())


# --- what the curve means ------------------------------------------------------------------------------------------


def test_each_width_costs_its_least_squares() -> None:
    """Without damping a width's loss is half the residual of lstsq on the kept inputs, weighted by output costs."""
    model, inputs = regression()
    structures = channels(model, inputs[:2])
    targets = laws.outputs(model, inputs)
    scores = EXACT(model, structures, [(inputs, targets)], half_square)
    hidden = laws.outputs(model[:2], inputs).numpy()
    weight = model.get_parameter("2.weight").detach().numpy()
    curve, cost = scores.curves[0], output_costs(model, structures, [(inputs, targets)])
    for width in range(1, 13):
        kept = hidden[:, curve.order[:width]]
        wanted = hidden @ weight.T
        best = np.linalg.lstsq(kept, wanted, rcond=None)[0]
        expected = 0.5 * ((wanted - kept @ best) ** 2 @ cost).mean()
        assert curve.loss[width] == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_values_are_the_steps_of_the_curve() -> None:
    """Higher = keep: the value of the x-th best is what the curve falls by it, so values fall along the order."""
    model, inputs = regression()
    structures = channels(model, inputs[:2])
    scores = LayerReconstruction(probes=0)(model, structures, [(inputs, laws.outputs(model, inputs) + 1)], half_square)
    curve = scores.curves[0]
    np.testing.assert_allclose(scores.values[curve.order], -np.diff(curve.loss))
    assert (scores.values >= 0).all()
    assert scores.unit == "nats"


def test_nats_are_the_rise_of_a_quadratic_loss() -> None:
    """On linear layers with squared loss the curve is the measured rise after re-fitting, whatever the noise is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10, bias=False), nn.Linear(10, 3, bias=False)).double()
    inputs = torch.randn(4000, 8, dtype=torch.float64)
    noise = 0.3 * torch.randn(4000, 3, dtype=torch.float64)
    noise -= inputs @ torch.linalg.lstsq(inputs, noise).solution  # orthogonal to what the network can change
    targets = laws.outputs(model, inputs) + noise
    structures = channels(model, inputs[:2])
    criterion = LayerReconstruction(damping=1e-9, probes=0, examples=4000)
    scores = criterion(model, structures, [(inputs[:512], targets[:512]), (inputs[512:], targets[512:])], half_square)
    dense = float(half_square(laws.outputs(model, inputs), targets))
    for width in (1, 2, 4, 5):
        small = refitted(model, structures, scores, keep_first(scores, structures, width))
        rise = float(half_square(laws.outputs(small, inputs), targets)) - dense
        assert scores.curves[0].loss[width] == pytest.approx(rise, rel=0.1)  # 512 examples tell the output costs
        assert rise > 1e-3
    assert scores.curves[0].loss[8] == pytest.approx(0, abs=1e-6)  # ten units of rank eight


def test_probes_measure_the_rise() -> None:
    """With probes the curve passes through the measured loss of the network with the axis cut and re-fitted."""
    model, inputs = regression()
    structures = channels(model, inputs[:2])
    inputs = inputs[:MOST_EXAMPLES]
    data = [(inputs, laws.outputs(model, inputs))]
    measured = LayerReconstruction(probes=4, damping=1e-9)(model, structures, data, half_square).curves[0]
    assert (np.diff(measured.loss) <= 0).all()
    assert measured.loss[-1] == 0
    hidden = laws.outputs(model[:2], inputs).numpy()
    wanted = hidden @ model.get_parameter("2.weight").detach().numpy().T
    for width in (1, 4, 7, 10):
        kept = hidden[:, measured.order[:width]]
        best = np.linalg.lstsq(kept, wanted, rcond=None)[0]
        rise = 0.5 * ((wanted - kept @ best) ** 2).sum(1).mean()
        assert measured.loss[width] == pytest.approx(rise, rel=1e-4)


def test_the_networks_own_outputs_are_targets_too() -> None:
    """Targets without any error have no gradient; the curve still tells what cutting would cost."""
    model, inputs = regression()
    structures = channels(model, inputs[:2])
    own, other = (
        LayerReconstruction(probes=0)(model, structures, [(inputs, targets)], half_square).curves[0]
        for targets in (laws.outputs(model, inputs), torch.randn(400, 4, dtype=torch.float64))
    )
    np.testing.assert_array_equal(own.loss, other.loss)
    assert own.loss[6] > 1e-4


@pytest.mark.parametrize("loss", [F.binary_cross_entropy_with_logits, F.smooth_l1_loss])
def test_other_losses_keep_their_targets(loss) -> None:
    """Only a squared error says what noise it assumes: gradients of the others are taken at the given targets."""
    model, inputs = regression()
    structures = channels(model, inputs[:2])
    curves = [
        LayerReconstruction(probes=0)(model, structures, [(inputs, targets)], loss).curves[0].loss
        for targets in (torch.zeros(400, 4, dtype=torch.float64), torch.full((400, 4), 0.5, dtype=torch.float64))
    ]
    assert (curves[0][:-2] != curves[1][:-2]).all()


def test_probes_of_classes_measure_divergence() -> None:
    """Where there are classes a probe is the divergence from the dense predictions, whatever the labels say."""
    model, example = BY_NAME["flatten"].make()
    structures = laws.channels_of(BY_NAME["flatten"])
    inputs = torch.randn(64, *example.shape[1:])
    curves = []
    for labels in (torch.zeros(64, dtype=torch.int64), torch.arange(64) % 5):
        found = LayerReconstruction(probes=4)(model, structures, [(inputs, labels)], F.cross_entropy)
        curves.append(found.curves[0].loss)
    np.testing.assert_allclose(curves[0], curves[1])
    assert curves[0][1] > 0


def test_a_loss_that_falls_by_chance_makes_no_axis_free() -> None:
    """A probe that finds a fall, as targets far off can give, leaves a curve that is positive below the whole width."""
    model, inputs = regression()
    structures = channels(model, inputs[:2])
    data = [(inputs, -3 * laws.outputs(model, inputs))]
    plain = LayerReconstruction(probes=0)(model, structures, data, half_square).curves[0].loss
    loss = LayerReconstruction(probes=4)(model, structures, data, half_square).curves[0].loss
    assert (loss >= 0.9e-3 * plain).all()


# --- convolutions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"kernel_size": (3, 1)}],
    ids=str,
)
def test_rows_of_a_convolution_are_unfold(options: dict[str, Any]) -> None:
    """The rows times the weight are the convolution's outputs, all positions, group by group."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, "bias": False, **options}).double()
    x = torch.randn(2, 4, 8, 7, dtype=torch.float64)
    one = linear_maps(channels(layer, x).labelled)[0]  # type: ignore[arg-type]
    rows, scale = Gather(one, layer.weight, seed=0, per_column=10**6)(x)
    assert scale == 1
    assert len(rows) == layer.groups
    weights = layer.weight.detach().reshape(layer.groups, 6 // layer.groups, -1)
    found = torch.cat([part @ weight.T for part, weight in zip(rows, weights, strict=True)], dim=1)
    expected = layer(x).detach().permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(found, expected)
    if not options:
        torch.testing.assert_close(rows[0], F.unfold(x, 3).transpose(1, 2).reshape(-1, 36))


def test_sampled_positions_stand_for_all() -> None:
    """Fewer positions carry the scale that brings their sum to that of all, up to sampling."""
    layer = nn.Conv2d(4, 6, 3).double()
    x = torch.randn(64, 4, 18, 18, dtype=torch.float64)
    one = linear_maps(channels(layer, x[:2]).labelled)[0]  # type: ignore[arg-type]
    rows, scale = Gather(one, layer.weight, seed=0)(x)
    assert scale == 256 / 16
    assert len(rows[0]) == 64 * 16
    everything = Gather(one, layer.weight, seed=0, per_column=10**6)(x)[0][0]
    assert float(rows[0].square().sum()) * scale == pytest.approx(float(everything.square().sum()), rel=0.1)


def test_a_convolution_costs_its_least_squares() -> None:
    """The curve of an axis that a convolution consumes is least squares on unfolded patches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 2), nn.Flatten(1)).double().eval()
    inputs = torch.randn(80, 2, 6, 6, dtype=torch.float64)
    structures = channels(model, inputs[:2])
    targets = laws.outputs(model, inputs) + 1
    scores = EXACT(model, structures, [(inputs, targets)], half_square)
    patches = F.unfold(laws.outputs(model[:2], inputs), 2).transpose(1, 2).reshape(80 * 9, 6, 4).numpy()
    weight = model.get_parameter("2.weight").detach().numpy().reshape(3, -1)
    wanted = patches.reshape(720, -1) @ weight.T
    curve, cost = scores.curves[0], output_costs(model, structures, [(inputs, targets)])
    for width in range(1, 6):
        kept = patches[:, curve.order[:width]].reshape(720, -1)
        best = np.linalg.lstsq(kept, wanted, rcond=None)[0]
        expected = 0.5 * ((wanted - kept @ best) ** 2 @ cost).sum() / 80
        assert curve.loss[width] == pytest.approx(expected, rel=1e-5)


class Planted(nn.Module):
    """Twelve channels between two convolutions, of which the second reads the first four only."""

    def __init__(self, matter: list[int]) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 5, 3)
        with torch.no_grad():
            keep = torch.zeros(12)
            keep[matter] = 1
            self.b.weight *= keep.view(1, 12, 1, 1)
            self.a.weight *= 10 - 9 * keep.view(12, 1, 1, 1)  # the idle ones are the largest

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.bn(self.a(x)))).mean((2, 3))


@pytest.mark.parametrize("probes", [0, 4])
def test_planted_channels_are_found(probes: int) -> None:
    """Four of twelve channels matter: they come first, the others cost nothing, and cutting them changes nothing."""
    torch.manual_seed(0)
    matter = [1, 4, 6, 11]
    model = Planted(matter).eval()
    data = [(torch.randn(32, 3, 8, 8), torch.randint(0, 5, (32,))) for _ in range(4)]
    structures = channels(model, data[0][0][:2])
    scores = LayerReconstruction(probes=probes)(model, structures, data, F.cross_entropy)
    curve = scores.curves[0]
    assert set(curve.order[:4].tolist()) == set(matter)
    assert curve.loss[4] <= 1e-6 * curve.loss[0]
    assert curve.loss[3] > 1e-3 * curve.loss[0]
    small = refitted(model, structures, scores, keep_first(scores, structures, 4))
    assert error(model, small, data[0][0]) < 1e-4 * float(laws.outputs(model, data[0][0]).var())


# --- what has no curve ---------------------------------------------------------------------------------------------


def test_axes_without_a_consumer_are_scored_by_fisher() -> None:
    """Queries and keys meet in a product of activations: their axis has Fisher's values and a note."""
    case = BY_NAME["attention"]
    model, example = case.make()
    structures, data = laws.channels_of(case), laws.toy_data(example)
    scores = LayerReconstruction()(model, structures, data, laws.toy_loss)
    missing = [number for number in range(len(structures.axes)) if number not in scores.curves]
    names = [structures.axes[number].name for number in missing]
    assert missing
    assert any(name in note and "scored by Fisher loss" in note for note in scores.notes for name in names)
    fisher = Fisher()(model, structures, data, laws.toy_loss).values
    for number in missing:
        entries = structures.axes[number].entries
        np.testing.assert_allclose(scores.values[entries], fisher[entries])


@pytest.mark.parametrize("name", ["depthwise_separable", "grouped", "channel_shuffle"])
def test_depthwise_and_grouped_convolutions_pass_through(name: str) -> None:
    """Channels go through depthwise and grouped convolutions to the maps that mix them: every axis has a curve."""
    case = BY_NAME[name]
    model, example = case.make()
    structures = laws.channels_of(case)
    scores = LayerReconstruction()(model, structures, laws.toy_data(example), laws.toy_loss)
    assert set(scores.curves) == set(range(len(structures.axes)))
    selection = np.ones(structures.n, dtype=bool)
    for number, axis in enumerate(structures.axes):
        order = scores.curves[number].order
        selection[axis.start + order[axis.levels[len(axis.levels) // 2] :]] = False
    assert torch.isfinite(laws.outputs(refitted(model, structures, scores, selection), example)).all()


# --- the re-fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "flatten", "depthwise_separable", "grouped", "fused_attention", "lstm"])
def test_refitting_lowers_the_error_on_held_out_inputs(name: str) -> None:
    """With a third of every axis gone, new weights bring the outputs closer to the dense ones, on inputs not seen."""
    case = BY_NAME[name]
    model, example = case.make()
    structures = laws.channels_of(case)
    torch.manual_seed(1)
    train, held_out = torch.randn(256, *example.shape[1:]), torch.randn(64, *example.shape[1:])
    data = [(train, torch.randn(256))]
    scores = LayerReconstruction(probes=0)(model, structures, data, laws.toy_loss)
    selection = np.ones(structures.n, dtype=bool)
    for number, axis in enumerate(structures.axes):
        curve = scores.curves.get(number)
        order = curve.order if curve is not None else axis.order(scores.values[axis.entries])
        level = axis.levels[axis.levels <= max(axis.levels[0], axis.size * 2 // 3)][-1]
        selection[axis.start + order[level:]] = False
    before = error(model, masked(model, structures, selection), held_out)
    after = error(model, refitted(model, structures, scores, selection), held_out)
    assert after < 0.9 * before


def test_removed_entries_stay_zero() -> None:
    """New weights are zero wherever the selection removes, and they have the old shapes."""
    case = BY_NAME["residual"]
    model, example = case.make()
    structures = laws.channels_of(case)
    scores = LayerReconstruction(probes=0)(model, structures, laws.toy_data(example), laws.toy_loss)
    selection = np.random.default_rng(0).random(structures.n) < 0.7
    for axis in structures.axes:
        selection[axis.start] = True
    assert scores.refit is not None
    found, masks, named = scores.refit(selection), structures.masks(selection), model.state_dict()
    assert found
    for name, tensor in found.items():
        assert tensor.shape == named[name].shape
        assert tensor.dtype == named[name].dtype
        assert name not in masks or not tensor[~masks[name]].any()


def test_nothing_removed_nothing_fitted() -> None:
    """With everything kept no weight changes; layers before the first cut never do."""
    case = BY_NAME["plain"]
    model, example = case.make()
    structures = laws.channels_of(case)
    scores = LayerReconstruction()(model, structures, laws.toy_data(example), laws.toy_loss)
    assert scores.refit is not None
    assert scores.refit(np.ones(structures.n, dtype=bool)) == {}
    assert "conv1.weight" not in scores.refit(keep_first(scores, structures, 4))
    assert LayerReconstruction(refit=False)(model, structures, laws.toy_data(example), laws.toy_loss).refit is None


@pytest.mark.parametrize(("name", "shared"), [("tied_embeddings", "tokens.weight"), ("called_twice", "again.weight")])
def test_shared_weights_are_not_fitted(name: str, shared: str) -> None:
    """A weight that serves twice keeps its values: a fit for one use would break the other."""
    case = BY_NAME[name]
    model, example = case.make()
    structures = laws.channels_of(case)
    scores = LayerReconstruction()(model, structures, laws.toy_data(example), laws.toy_loss)
    assert scores.refit is not None
    found = scores.refit(keep_first(scores, structures, 1, next(iter(scores.curves))))
    assert found
    assert shared not in found
    assert "lm_head.weight" not in found


class Squeezed(nn.Module):
    """A feed-forward network over sequences, seen as one long batch (GPT-2's Conv1D) or not."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.a, self.b, self.flat = nn.Linear(6, 10), nn.Linear(10, 3), flat

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 6) if self.flat else x
        return self.b(torch.tanh(self.a(rows))).reshape(len(x), -1)


def test_positions_count_whether_flattened_or_not() -> None:
    """Sequences that are laid side by side into one long batch lose as much per example."""
    torch.manual_seed(0)
    flat, plain = Squeezed(True).eval(), Squeezed(False).eval()
    flat.load_state_dict(plain.state_dict())
    inputs = torch.randn(32, 7, 6)
    data = [(inputs, torch.randn(32, 21))]
    curves = [
        LayerReconstruction(probes=0)(m, channels(m, inputs[:2]), data, half_square).curves[0] for m in (flat, plain)
    ]
    np.testing.assert_allclose(curves[0].loss, curves[1].loss, rtol=1e-5)


# --- output costs, order of the loader, errors ---------------------------------------------------------------------


def test_output_costs_are_mean_squared_gradients() -> None:
    """E[g_o^2] over examples and positions of single examples' losses, by one backward pass for each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(1)).double()
    inputs, targets = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.randn(6, 12, dtype=torch.float64)
    labelled = channels(model, inputs[:2]).labelled
    assert labelled is not None
    maps = linear_maps(labelled)
    data = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    found = output_sensitivity(labelled, model, maps, data, F.smooth_l1_loss, 6, 0)
    squares = torch.zeros(4, dtype=torch.float64)
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        middle = model[0](x).detach().requires_grad_()
        gradient = torch.autograd.grad(F.smooth_l1_loss(model[1:](middle), y), middle)[0]
        squares += gradient.square().mean((0, 2, 3)) / 6
    np.testing.assert_allclose(found[maps[0].node], squares.numpy(), rtol=1e-9)


def test_a_shuffled_loader_gives_the_same_scores() -> None:
    """The order of the data is drawn from a state of its own, and the caller's is kept."""
    case = BY_NAME["mlp"]
    model, _ = case.make()
    loader = DataLoader(TensorDataset(torch.randn(32, 10), torch.randn(32)), batch_size=4, shuffle=True)
    laws.scores_repeat(LayerReconstruction(examples=8), model, laws.channels_of(case), loader)
    state = torch.get_rng_state()
    LayerReconstruction(examples=8)(model, laws.channels_of(case), loader, laws.toy_loss)
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_is_that_of_the_elimination_whatever_the_probes() -> None:
    """Probes scale the curve and leave the order."""
    model, inputs = regression()
    structures, data = channels(model, inputs[:2]), [(inputs, laws.outputs(model, inputs) + 1)]
    first = LayerReconstruction(probes=0)(model, structures, data, half_square).curves[0]
    second = LayerReconstruction(probes=3)(model, structures, data, half_square).curves[0]
    assert np.array_equal(first.order, second.order)


def test_what_is_missing_or_wrong_is_said() -> None:
    """Data, loss, channels and settings are asked for in words."""
    case = BY_NAME["plain"]
    model, example = case.make()
    structures, data = laws.channels_of(case), laws.toy_data(example)
    with pytest.raises(ValueError, match=r"Expected data for LayerReconstruction.*Pass data="):
        LayerReconstruction()(model, structures, None, laws.toy_loss)
    with pytest.raises(ValueError, match=r"Expected loss for LayerReconstruction.*Pass loss="):
        LayerReconstruction()(model, structures, data, None)
    with pytest.raises(ValueError, match=r"Expected channels. Got blocks. Use Fisher"):
        LayerReconstruction()(model, blocks(model, (2, 2)), data, laws.toy_loss)
    with pytest.raises(ValueError, match="Expected damping between 0 and 1. Got 0"):
        LayerReconstruction(damping=0)
    with pytest.raises(ValueError, match="Expected examples to be an integer >= 1"):
        LayerReconstruction(examples=0)
    with pytest.raises(ValueError, match="Expected probes to be an integer >= 0"):
        LayerReconstruction(probes=-1)
    with pytest.raises(ValueError, match="not finite|positive definite|finite"):
        LayerReconstruction()(model, structures, [(example * float("nan"), data[0][1])], laws.toy_loss)


class TwoConvolutions(nn.Module):
    """Convolutions without bias, each before a batch norm; ``shared`` gives both the same one."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, bias=False)
        self.norm2 = self.norm1 if shared else nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        return self.head(self.norm2(self.second(x)).tanh().mean((2, 3)))


def after_second_norm(model: nn.Module, inputs: Tensor) -> Tensor:
    """Mean over examples and positions of what the second batch norm gives."""
    assert isinstance(model, TwoConvolutions)
    with torch.no_grad():
        return model.norm2(model.second(model.norm1(model.first(inputs)).relu())).mean((0, 2, 3))


def test_batch_norms_mean_takes_the_intercept() -> None:
    """After a convolution without bias, the fit leaves no mean error behind the batch norm; the variance stays."""
    torch.manual_seed(0)
    model = unsettle(TwoConvolutions()).double().eval()
    inputs = torch.randn(200, 3, 6, 6, dtype=torch.float64) + 1
    structures = channels(model, inputs[:2])
    assert structures.axes[0].name == "first"
    scores = EXACT(model, structures, [(inputs, torch.randn(200, 4, dtype=torch.float64))], half_square)
    other = refitted(model, structures, scores, keep_first(scores, structures, 3))
    torch.testing.assert_close(after_second_norm(other, inputs), after_second_norm(model, inputs), rtol=1e-6, atol=1e-6)
    assert torch.equal(other.get_buffer("norm2.running_var"), model.get_buffer("norm2.running_var"))


def test_a_shared_batch_norm_takes_no_intercept() -> None:
    """A running mean that two convolutions are followed by is nobody's to change."""
    torch.manual_seed(0)
    model = unsettle(TwoConvolutions(shared=True)).double().eval()
    inputs = torch.randn(64, 3, 6, 6, dtype=torch.float64)
    structures = channels(model, inputs[:2])
    scores = EXACT(model, structures, [(inputs, torch.randn(64, 4, dtype=torch.float64))], half_square)
    selection = np.ones(structures.n, dtype=bool)
    selection[structures.axes[0].start] = False
    assert scores.refit is not None
    assert not any(name.endswith("running_mean") for name in scores.refit(selection))


class Joined(nn.Module):
    """A branch with a hidden layer, joined by a second map that looks at it: h + map(h), then a ReLU or not."""

    def __init__(self, relu: bool, late: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 8)
        self.map, self.shortcut, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu, self.late = relu, late

    def hidden(self, x: Tensor) -> Tensor:
        h = self.down(self.up(x).tanh())
        y = self.map(h.tanh())
        joined = (self.shortcut(h) if self.late else h) + y
        return joined.relu() if self.relu else joined

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


def joined(relu: bool, late: bool = False) -> tuple[Joined, Tensor]:
    """The network in float64 and inputs for it."""
    torch.manual_seed(0)
    model = Joined(relu, late)
    unsettle(model).double().eval()
    return model, torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)


@pytest.mark.parametrize("relu", [False, True])
def test_fits_aim_at_what_the_network_looks_at(relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map makes up for the branch it is added to, and not for what a ReLU hides: the hidden error is smaller."""
    model, inputs = joined(relu)
    structures = channels(model, inputs[:2])
    data = [(inputs, torch.randn(400, 4, dtype=torch.float64))]
    errors = []
    for behind in (response_behind, lambda one: Response()):
        monkeypatch.setattr(refit, "response_behind", behind)
        scores = EXACT(model, structures, data, half_square)
        other = refitted(model, structures, scores, keep_first(scores, structures, 4))
        assert isinstance(other, Joined)
        with torch.no_grad():
            errors.append(float((other.hidden(inputs) - model.hidden(inputs)).square().mean()))
    assert errors[0] < 0.9 * errors[1]


def responses(model: nn.Module, example: Tensor) -> dict[str, Response]:
    """What follows each map of a network, by the map's weight."""
    labelled = channels(model, example).labelled
    assert labelled is not None
    return {one.weight: response_behind(one) for one in linear_maps(labelled)}


def test_responses_are_read_from_the_graph() -> None:
    """Norm, added branch and limits are found where they come in that order; a branch computed later is not."""
    model, inputs = joined(relu=True)
    found = responses(model, inputs[:2])
    assert found["map.weight"].other is not None
    assert found["map.weight"].low == 0
    assert not found["map.weight"].high < float("inf")
    assert not found["up.weight"].clips
    late = responses(joined(relu=False, late=True)[0], inputs[:2])
    assert late["map.weight"].other is None
    assert late["shortcut.weight"].other is not None
    convolutions = responses(TwoConvolutions().eval(), torch.randn(2, 3, 6, 6))
    assert convolutions["first.weight"].norm is not None
    assert convolutions["first.weight"].clips
    assert not convolutions["second.weight"].clips
    six = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 2))
    found = responses(six, torch.randn(2, 3))
    assert (found["0.weight"].low, found["0.weight"].high) == (0, 6)
    assert (found["2.weight"].low, found["2.weight"].high) == (-1, 1)
