"""Batches: what is taken, where it goes, and what is measured on it."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from structprune.data import batch_to, call, check_data, cut, eval_mode, evaluate, infer_loss


def pairs(count: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Return batches of (inputs, class indices)."""
    return [(torch.randn(size, 5), torch.randint(0, 3, (size,))) for _ in range(count)]


def test_lists_and_loaders_are_iterated_again_and_again() -> None:
    """Data is taken as it comes, and twice gives the same."""
    data = pairs()
    checked = check_data(data)
    for _ in range(2):
        assert [inputs is given for (inputs, _), (given, _) in zip(checked, data, strict=True)] == [True] * 3
    loader = DataLoader(TensorDataset(torch.randn(10, 5), torch.zeros(10)), batch_size=4)
    assert [len(check_data(loader)), len(list(check_data(loader)))] == [3, 3]


def test_checking_twice_is_checking_once() -> None:
    """What has been checked comes back as it is."""
    checked = check_data(pairs())
    assert check_data(checked) is checked


def test_data_without_a_length_is_counted() -> None:
    """An iterable dataset's batches are counted by looking."""

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from pairs(5)

    assert len(check_data(Stream())) == 5


def test_a_generator_is_refused() -> None:
    """What can be iterated over once only would be empty the second time; the message says what to pass."""
    message = "Expected data that can be iterated several times. Got a generator. Pass a list or a DataLoader."
    with pytest.raises(TypeError) as caught:
        check_data(batch for batch in pairs())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "Got None"),
        (3, "Got an int"),
        (torch.zeros(3), "Got a tensor"),
        ("digits", "Got a str"),
        ({"inputs": torch.zeros(3)}, "Got a dict"),
        ((torch.zeros(4, 5), torch.zeros(4)), r"a tensor of shape \(4, 5\) as batch 0"),
        ([(torch.zeros(4, 5),)], "a tuple of 1 as batch 0"),
        (TensorDataset(torch.zeros(4, 5)), "a tuple of 1 as batch 0"),
        ([(torch.zeros(5), 3)], "single number 3 in batch 0"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, words: str) -> None:
    """The message says what was found in place of batches of pairs, and what to pass."""
    with pytest.raises(TypeError, match=f"Expected .*{words}.* Pass "):
        check_data(data)


def test_no_batches_are_refused() -> None:
    """An empty list is no data."""
    with pytest.raises(ValueError, match="at least one batch"):
        check_data([])


def test_a_later_batch_that_is_no_pair_is_named() -> None:
    """Each batch is checked when its turn comes."""
    data = check_data([*pairs(2), (torch.zeros(4, 5),)])
    with pytest.raises(TypeError, match="as batch 2"):
        list(data)


def test_batches_move_whole() -> None:
    """All tensors of a nest change device, what is no tensor stays, and named tuples keep their names."""
    Pair = namedtuple("Pair", ["left", "right"])
    batch = ({"a": torch.zeros(2), "b": [torch.ones(1)]}, Pair(torch.zeros(1), "text"))
    moved = batch_to(batch, "meta")
    assert (moved[0]["a"].device.type, moved[0]["b"][0].device.type) == ("meta", "meta")
    assert (moved[1].left.device.type, moved[1].right) == ("meta", "text")


def test_inputs_are_passed_as_the_network_takes_them() -> None:
    """A tensor alone, a tuple by position, a dictionary by name."""

    def model(left: Tensor, right: float = 1.0) -> Tensor:
        return left * right

    x = torch.ones(2)
    assert call(model, x).sum() == 2
    assert call(model, (x, 3.0)).sum() == 6
    assert call(model, {"right": 2.0, "left": x}).sum() == 4


def test_cutting_leaves_every_example_once_and_none_alone() -> None:
    """Nine examples in pieces of at most four are three, three, three; inputs and targets stay together."""
    batch = (torch.arange(9.0).reshape(9, 1), torch.arange(9))
    pieces = cut(batch, 4, torch.Generator().manual_seed(0))
    assert [len(targets) for _, targets in pieces] == [3, 3, 3]
    assert sorted(torch.cat([targets for _, targets in pieces]).tolist()) == list(range(9))
    assert all(torch.equal(inputs[:, 0].long(), targets) for inputs, targets in pieces)
    assert cut(batch, 9, torch.Generator())[0] is batch
    assert cut(batch, None, torch.Generator())[0] is batch


def test_class_indices_get_the_cross_entropy() -> None:
    """Also for maps of classes, and whatever integers the indices are."""
    logits, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1], dtype=torch.int32)
    assert torch.equal(infer_loss(logits, targets)(logits, targets), F.cross_entropy(logits, targets.long()))
    logits, targets = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    assert torch.equal(infer_loss(logits, targets)(logits, targets), F.cross_entropy(logits, targets))


def test_floating_targets_get_half_the_squared_error() -> None:
    """The nats of a Gaussian of unit variance, up to a constant."""
    output, targets = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
    assert infer_loss(output, targets)(output, targets) == 2.5


def test_the_logits_of_an_output_object_are_found() -> None:
    """Outputs with logits, and tuples that begin with a tensor, are judged by it."""
    Output = namedtuple("Output", ["hidden", "logits"])
    logits, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    expected = F.cross_entropy(logits, targets)
    for output in (Output(torch.zeros(1), logits), {"logits": logits}, (logits, torch.zeros(1))):
        assert torch.equal(infer_loss(output, targets)(output, targets), expected)


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.zeros(4, 1), torch.zeros(4)),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int64)),
        (torch.zeros(4, 7, 3), torch.zeros(4, 7, dtype=torch.int64)),
        (torch.zeros(4, 3), ["a"] * 4),
        ({"boxes": torch.zeros(4)}, torch.zeros(4)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.bool)),
    ],
)
def test_a_loss_that_cannot_be_told_is_asked_for(output: Any, targets: Any) -> None:
    """Shapes and types that fit neither loss lead to a message that says how to pass one."""
    with pytest.raises(ValueError, match=r"Expected .* Got .* Pass loss="):
        infer_loss(output, targets)


class Fixed(nn.Module):
    """Takes its inputs for logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_mean_is_over_examples_and_not_over_batches() -> None:
    """A batch of one counts a third of a batch of three."""
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    data = [(logits[:3], targets[:3]), (logits[3:], targets[3:])]
    result = evaluate(Fixed(), data, F.cross_entropy)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-6)
    assert result.examples == 4


def test_accuracy_and_recall_are_counted_by_hand() -> None:
    """Two of three zeros and none of the ones are found; class 2 has no example and no recall."""
    logits = F.one_hot(torch.tensor([0, 0, 1, 2, 0]), 3).float()
    result = evaluate(Fixed(), [(logits, torch.tensor([0, 0, 0, 1, 1]))], F.cross_entropy)
    assert result.accuracy == pytest.approx(2 / 5)
    assert result.recall == {0: pytest.approx(2 / 3), 1: 0.0}


def test_ignored_targets_count_for_nothing() -> None:
    """Negative indices are no classes."""
    logits = F.one_hot(torch.tensor([0, 1]), 3).float()
    result = evaluate(Fixed(), [(logits, torch.tensor([0, -100]))], F.cross_entropy)
    assert (result.accuracy, result.recall) == (1.0, {0: 1.0})


def test_regression_has_no_accuracy() -> None:
    """Floating targets have a loss and nothing else."""
    result = evaluate(Fixed(), [(torch.zeros(2, 1), torch.ones(2, 1))], F.mse_loss)
    assert result == (1.0, None, 2, None)


def test_evaluation_leaves_the_network_as_it_was() -> None:
    """It runs in evaluation mode without gradients, and every module's own mode and statistics come back."""
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (evaluate(model, pairs()[:1] * 2, F.cross_entropy) for _ in range(2))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert first.examples == second.examples == 8


def test_modes_come_back_after_an_error() -> None:
    """A network that fails in the middle is put back as well."""
    model = nn.Dropout(0.5).train()
    with pytest.raises(RuntimeError), eval_mode(model):
        assert not model.training
        raise RuntimeError
    assert model.training
