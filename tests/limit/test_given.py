"""What a limit refuses to be computed from, and where epsilon comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from structprune.limit.curvature import GaussNewton, LossAt
from structprune.limit.given import checked_loss, epsilon_of, refuse_unsteady
from structprune.limit.value import Interval
from tests.limit.small import batches, made, mlp


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Examples that are shifted anew whenever they are looked at."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.rand(4, dtype=torch.float64), torch.tensor(index % 3)


def shuffled() -> DataLoader[Any]:
    """A loader that draws an order in every pass."""
    parts = [torch.cat(part) for part in zip(*batches(4), strict=True)]
    return DataLoader(TensorDataset(*parts), batch_size=4, shuffle=True)


def test_a_fixed_loader_is_read_once() -> None:
    """The loss on a loader that keeps its order is the mean over its examples."""
    parts = [torch.cat(part) for part in zip(*batches(4), strict=True)]
    model = made(mlp)
    at = checked_loss(model, DataLoader(TensorDataset(*parts), batch_size=5), None)
    assert at.examples == 16
    assert at(at.layout.weights(model)) == pytest.approx(F.cross_entropy(model(parts[0]), parts[1]).item())


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        (iter(batches(4)), TypeError, "iterated several times"),
        (torch.zeros(3, 4), TypeError, "batches of \\(inputs, targets\\)"),
        (shuffled(), ValueError, "same in every pass.*data=list\\(loader\\)"),
        (DataLoader(Augmented(), batch_size=4), ValueError, "shuffling and augmentation off"),
    ],
    ids=["empty", "one pass", "no pairs", "shuffled", "augmented"],
)
def test_data_that_are_no_fixed_batches_are_refused(data: Any, error: type[Exception], message: str) -> None:
    """Empty, one-pass, shuffled and augmented data are refused, each with what to do."""
    with pytest.raises(error, match=message):
        checked_loss(made(mlp), data, None)


def test_training_mode_is_refused() -> None:
    """A module left in training mode is named."""
    model = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
    model[1].train()  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match="Got '1' in training mode. Call model.eval\\(\\)"):
        checked_loss(model, batches(4), None)


def test_something_else_than_a_network_is_refused() -> None:
    """A path to a checkpoint is no network."""
    with pytest.raises(TypeError, match="torch.nn.Module. Got str"):
        checked_loss("model.pt", batches(4), None)  # type: ignore[arg-type]


def test_weights_that_are_no_numbers_are_refused() -> None:
    """A network with a NaN is refused, and the message says that the weights hold it."""
    model = made(mlp)
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite loss. Got nan: the weights hold"):
        checked_loss(model, batches(4), None)


def test_data_that_are_no_numbers_are_refused() -> None:
    """Data with a NaN are refused as such, not as data that change from pass to pass."""
    data = batches(4)
    data[1][0][0, 0] = torch.nan
    with pytest.raises(ValueError, match="the data or the loss give"):
        checked_loss(made(mlp), data, None)


class Noisy(nn.Module):
    """A linear layer that adds noise in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.dropout(x, 0.5, training=True))


def test_networks_that_draw_numbers_are_refused() -> None:
    """A network whose loss differs from call to call in evaluation mode is refused, whatever the curvature."""
    with pytest.raises(ValueError, match="random layers that evaluation mode does not turn off"):
        checked_loss(made(Noisy), batches(4), None)


def made_loss() -> tuple[LossAt, Tensor]:
    """A loss on batches of six, six and four examples, and the weights."""
    at = checked_loss(made(mlp), batches(4), None)
    return at, at.layout.weights(at.model)


def test_curvature_that_changes_is_refused() -> None:
    """Products of one vector that differ are refused."""
    at, here = made_loss()
    operator = GaussNewton(at, here)
    with pytest.raises(ValueError, match="same curvature each time"):
        refuse_unsteady(lambda vector: operator(vector) * torch.rand(()), here, 0)  # type: ignore[arg-type]


def test_curvature_that_is_not_symmetric_is_refused() -> None:
    """An operator with u'Hv != v'Hu is refused."""
    _, here = made_loss()
    with pytest.raises(ValueError, match="symmetric curvature"):
        refuse_unsteady(lambda vector: vector.roll(1), here, 0)


def test_sound_curvature_passes() -> None:
    """A Gauss-Newton operator, and no curvature at all, are taken."""
    at, here = made_loss()
    refuse_unsteady(GaussNewton(at, here), here, 0)
    refuse_unsteady(lambda vector: 0 * vector, here, 0)


def test_epsilon_by_itself_is_the_spread_of_whole_batches() -> None:
    """'batch_std' is the standard deviation over the batches of full size, inside its interval."""
    at, here = made_loss()
    found, source = epsilon_of("batch_std", at, here, 0.95, 0)
    assert found.value == pytest.approx(np.std(at.by_batch(here)[:2]))
    assert 0 < found.low <= found.value <= found.high
    assert source == "standard deviation of the loss over 2 batches of 6"


def test_epsilon_as_a_number_has_no_interval() -> None:
    """A number of nats is taken as it is."""
    at, here = made_loss()
    assert epsilon_of(0.25, at, here, 0.95, 0) == (Interval(0.25, 0.25, 0.25), "given")
    assert epsilon_of(np.float32(0.25), at, here, 0.95, 0)[0].value == 0.25  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf"), "std", True, None])
def test_an_epsilon_that_is_none_is_refused(epsilon: Any) -> None:
    """Anything but a positive number of nats or 'batch_std' is refused."""
    at, here = made_loss()
    with pytest.raises(ValueError, match="Expected epsilon"):
        epsilon_of(epsilon, at, here, 0.95, 0)


def test_one_batch_has_no_spread() -> None:
    """A single batch is refused for 'batch_std', with what to do."""
    at = checked_loss(made(mlp), batches(4)[:1], None)
    with pytest.raises(ValueError, match="Pass smaller batches, or epsilon="):
        epsilon_of("batch_std", at, at.layout.weights(at.model), 0.95, 0)
