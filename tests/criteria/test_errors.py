"""Scores and criteria refuse what is wrong, and say what to do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from structprune.criteria import BNScale, Criterion, Curve, Fisher, Magnitude, Random, Scores, Taylor
from structprune.structures import channels
from tests import laws
from tests.cases import BY_NAME

PLAIN = BY_NAME["plain"]
WITH_DATA: list[Criterion] = [Taylor(), Fisher()]


@pytest.mark.parametrize("criterion", WITH_DATA, ids=repr)
def test_data_is_asked_for(criterion: Criterion) -> None:
    """A criterion that needs gradients says so when there is no data or no loss."""
    model, example = PLAIN.make()
    with pytest.raises(ValueError, match=r"Expected data for .*Got None\. Pass data="):
        criterion(model, laws.channels_of(PLAIN), None, laws.toy_loss)
    with pytest.raises(ValueError, match=r"Expected loss for .*Got None\. Pass loss="):
        criterion(model, laws.channels_of(PLAIN), laws.toy_data(example), None)


@pytest.mark.parametrize("criterion", WITH_DATA, ids=repr)
def test_empty_data_is_refused(criterion: Criterion) -> None:
    """No batch, or batches without examples, give no score."""
    model, _ = PLAIN.make()
    with pytest.raises(ValueError, match="Expected at least one batch"):
        criterion(model, laws.channels_of(PLAIN), [], laws.toy_loss)
    with pytest.raises(ValueError, match="Expected data with at least one example"):
        criterion(model, laws.channels_of(PLAIN), [(torch.zeros(0, 3, 8, 8), torch.zeros(0))], laws.toy_loss)


@pytest.mark.parametrize("criterion", WITH_DATA, ids=repr)
def test_a_loss_that_is_not_one_number_is_refused(criterion: Criterion) -> None:
    """A loss per example must be averaged by the caller."""
    model, example = PLAIN.make()
    data = laws.toy_data(example)
    with pytest.raises(ValueError, match=r"Expected loss\(output, target\) to be one number.*Got shape \(\d, 5\)"):
        criterion(model, laws.channels_of(PLAIN), data, lambda output, target: output)
    with pytest.raises(ValueError, match="Got float"):
        criterion(model, laws.channels_of(PLAIN), data, lambda output, target: output.mean().item())


@pytest.mark.parametrize("criterion", WITH_DATA, ids=repr)
def test_a_loss_without_gradient_is_refused(criterion: Criterion) -> None:
    """A detached loss would make every structure worthless."""
    model, example = PLAIN.make()
    with pytest.raises(ValueError, match="Expected a loss that depends on the weights"):
        criterion(model, laws.channels_of(PLAIN), laws.toy_data(example), lambda output, target: output.detach().mean())


@pytest.mark.parametrize("criterion", WITH_DATA, ids=repr)
def test_the_model_is_untouched_after_an_error(criterion: Criterion) -> None:
    """When the loss raises, modes and requires_grad are put back."""
    model, example = PLAIN.make()
    model.train()
    next(model.parameters()).requires_grad_(False)

    def failing(output, target):
        raise RuntimeError("broken loss")

    with pytest.raises(RuntimeError, match="broken loss"):
        criterion(model, laws.channels_of(PLAIN), laws.toy_data(example), failing)
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 10


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor(), Fisher(), BNScale(otherwise=Magnitude())], ids=repr)
def test_nan_weights_are_named(criterion: Criterion) -> None:
    """A NaN in a weight is an error that names an axis and the weight."""
    model, example = PLAIN.make()
    with torch.no_grad():
        model.get_parameter("bn1.weight")[3] = float("nan")
    with pytest.raises(ValueError, match=r"axis 'conv\d'; parameter 'bn1\.weight' holds NaN.*Load sound weights"):
        criterion(model, laws.channels_of(PLAIN), laws.toy_data(example), laws.toy_loss)


@pytest.mark.parametrize("criterion", WITH_DATA, ids=repr)
def test_nan_data_is_told_from_nan_weights(criterion: Criterion) -> None:
    """Where all weights are finite, the message points to the data and the loss."""
    model, example = PLAIN.make()
    example[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="all parameters are finite.*the data or the loss"):
        criterion(model, laws.channels_of(PLAIN), laws.toy_data(example), laws.toy_loss)


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor(), Fisher(), BNScale()], ids=repr)
def test_structures_of_another_network_are_refused(criterion: Criterion) -> None:
    """Structures belong to the network that they were found in."""
    model, example = BY_NAME["mlp"].make()
    with pytest.raises(ValueError, match="Expected the network that the structures were found in, with 'conv1.weight'"):
        criterion(model, laws.channels_of(PLAIN), laws.toy_data(example), laws.toy_loss)


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor(), Fisher(), BNScale(), Random()], ids=repr)
def test_no_structures_no_scores(criterion: Criterion) -> None:
    """A network that is kept whole has an empty list of scores."""
    model, example = PLAIN.make()
    scores = criterion(model, channels(model, example, keep_whole="*"), laws.toy_data(example), laws.toy_loss)
    assert scores.values.shape == (0,)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Magnitude(p=3),  # type: ignore[arg-type]
        lambda: Magnitude(normalise="axis"),  # type: ignore[arg-type]
        lambda: Taylor(examples=0),
        lambda: Taylor(examples=True),
        lambda: Fisher(examples=2.5),  # type: ignore[arg-type]
        lambda: Random(seed=-1),
    ],
)
def test_wrong_settings_are_refused(wrong) -> None:
    """A setting that makes no sense is an error where it is given."""
    with pytest.raises(ValueError, match=r"^Expected .* Got .*\. (Use|Pass) "):
        wrong()


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor(), Fisher(), BNScale(), Random()], ids=repr)
def test_criteria_are_values(criterion: Criterion) -> None:
    """Criteria are frozen, equal by their settings, and can be read."""
    assert dataclasses.replace(criterion) == criterion  # type: ignore[type-var]
    assert eval(repr(criterion)) == criterion
    with pytest.raises(dataclasses.FrozenInstanceError):
        criterion.seed = 1  # type: ignore[attr-defined]


def test_scores_are_finite_and_flat() -> None:
    """A NaN or a matrix is no score."""
    with pytest.raises(ValueError, match="Expected finite values. Got nan at structure 1"):
        Scores(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"Expected values of shape \(n,\). Got \(1, 2\)"):
        Scores(np.zeros((1, 2)))


def test_scores_do_not_change_with_their_source() -> None:
    """Scores keep a copy: what the caller does to the array later does not reach them."""
    values = np.ones(3)
    scores = Scores(values)
    values[0] = 5
    assert scores.values[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0] = 5


def test_scores_are_checked_against_structures() -> None:
    """The number of values and the size of each curve must be those of the structures."""
    structures = laws.channels_of(PLAIN)
    with pytest.raises(ValueError, match=r"Expected values of shape \(30,\). Got \(29,\)"):
        Scores(np.zeros(29)).check(structures)
    curve = Curve(np.arange(4), np.zeros(5))
    with pytest.raises(ValueError, match="Expected the curve of axis 'conv1' to order 8 structures. Got 4"):
        Scores(np.zeros(30), {0: curve}).check(structures)
    with pytest.raises(ValueError, match=r"Expected curves of axes 0 \.\.\. 2. Got axis 3"):
        Scores(np.zeros(30), {3: curve}).check(structures)
    scores = Scores(np.zeros(30), {0: Curve(np.arange(8), np.zeros(9))})
    assert scores.check(structures) is scores


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 3], [[0, 1, 2]]])
def test_a_curve_orders_each_structure_once(order) -> None:
    """The order of a curve is a permutation."""
    with pytest.raises(ValueError, match=r"Expected order to hold each of 0 \.\.\. size - 1 once"):
        Curve(np.array(order), np.zeros(4))


@pytest.mark.parametrize("loss", [[3, 2, 1], [3, 2, 1, 1], [3, np.inf, 1, 0], [3, np.nan, 1, 0]])
def test_a_curve_has_a_finite_loss_at_each_width(loss) -> None:
    """One loss for each of 0 ... size, finite, and none for the whole axis."""
    with pytest.raises(ValueError, match="Expected 4 finite losses, the last one 0"):
        Curve(np.arange(3), np.array(loss, dtype=float))


def test_a_curve_may_rise() -> None:
    """An estimate need not fall with the width, and it may be negative."""
    curve = Curve(np.array([2, 0, 1]), np.array([1.0, -0.5, 0.2, 0.0]))
    assert curve.size == 3
