"""The fine-tune: what it trains, on what, and what it leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from structprune.data import check_data, evaluate
from structprune.finetune import FineTune, FineTuned, split_data


def two_moons(count: int = 96) -> tuple[Tensor, Tensor]:
    """Return points of two classes that a line separates well but not entirely."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 2
    return torch.randn(count, 4, generator=generator) + 1.5 * (2 * targets[:, None] - 1), targets


def batches(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Return the points in batches."""
    inputs, targets = two_moons()
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def network(*, dropout: float = 0.0) -> nn.Sequential:
    """Return a small network with batch norm."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def same(left: nn.Module, right: nn.Module) -> bool:
    """Tell whether two networks have the same state, bit for bit."""
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(name == other and torch.equal(value, twin) for (name, value), (other, twin) in pairs)


def test_training_lowers_the_validation_loss() -> None:
    """The default settings improve a fresh network, and the history tells it."""
    result = FineTune(epochs=4).run(network(), batches(), F.cross_entropy, progress=False)
    assert [epoch.number for epoch in result.history] == [0, 1, 2, 3, 4]
    assert result.history[0].train_loss is None
    assert result.history[-1].validation_loss < result.history[0].validation_loss
    assert result.history[-1].validation_accuracy == pytest.approx(1.0, abs=0.1)
    assert not result.notes


def test_the_original_is_untouched() -> None:
    """Weights, statistics, modes and gradients of the argument stay, also where the copy's all change."""
    model = network().train()
    model[1].eval()
    before = copy.deepcopy(model)
    result = FineTune().run(model, batches(), F.cross_entropy, progress=False)
    assert same(model, before)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not same(result.model, before)


def test_the_result_is_in_evaluation_mode_without_gradients() -> None:
    """It is ready to be used."""
    result = FineTune().run(network().train(), batches(), F.cross_entropy, progress=False)
    assert not any(module.training for module in result.model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in result.model.parameters())


def test_equal_seeds_give_equal_networks() -> None:
    """Order, split and dropout follow the seed, and the global generator neither matters nor moves."""
    model = network(dropout=0.5)
    results: list[FineTuned] = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))
        state = torch.get_rng_state()
        results.append(FineTune(seed=seed, batch_size=8).run(model, batches(), F.cross_entropy, progress=False))
        assert torch.equal(state, torch.get_rng_state())
    assert same(results[0].model, results[1].model)
    assert results[0].history == results[1].history
    assert not same(results[0].model, results[2].model)


def test_a_shuffling_loader_gives_equal_networks_too() -> None:
    """Its own shuffle is replaced by one that follows the seed."""
    loader = DataLoader(TensorDataset(*two_moons()), batch_size=16, shuffle=True)
    model = network()
    first, second = (FineTune().run(model, loader, F.cross_entropy, progress=False) for _ in range(2))
    assert same(first.model, second.model)


def test_the_best_epoch_is_kept() -> None:
    """Nothing can be learnt from labels drawn at random, so the network that gives both classes 1/2 is the best."""
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = [(inputs, torch.randint(0, 2, targets.shape)) for inputs, targets in batches()]
    result = FineTune(epochs=3, lr=1.0).run(model, data, F.cross_entropy, progress=False)
    assert result.best_epoch == 0
    assert result.history[0].validation_loss == pytest.approx(math.log(2))
    assert same(result.model, model)


def test_the_kept_weights_have_the_loss_that_the_history_says() -> None:
    """Evaluating the result on the held-out batches gives the best epoch's figures."""
    tune = FineTune(epochs=3, lr=0.5, seed=1)
    result = tune.run(network(), batches(), F.cross_entropy, progress=False)
    split = split_data(check_data(batches()), tune.validation, tune.seed)
    best = min(epoch.validation_loss for epoch in result.history)
    assert result.history[result.best_epoch].validation_loss == best
    assert evaluate(result.model, split.held_out, F.cross_entropy).loss == pytest.approx(best, rel=1e-6)


def test_no_epochs_only_validate() -> None:
    """With epochs=0 the copy equals the original."""
    model = network()
    result = FineTune(epochs=0).run(model, batches(), F.cross_entropy, progress=False)
    assert same(result.model, model)
    assert len(result.history) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", lambda parameters: torch.optim.RMSprop(parameters, lr=0.01)])
def test_removed_entries_stay_exactly_zero(optimizer: Any) -> None:
    """Masks hold through momentum, weight decay and the running statistics, and the rest is trained."""
    model = network()
    rows = torch.tensor([True, False] * 4)
    masks = {"0.weight": rows[:, None].expand(8, 4), "1.running_mean": rows, "1.bias": rows}
    result = FineTune(optimizer=optimizer).run(model, batches(), F.cross_entropy, masks=masks, progress=False)
    state = result.model.state_dict()
    assert result.best_epoch > 0
    for name, mask in masks.items():
        assert (state[name][~mask] == 0).all()
        assert not torch.equal(state[name][mask], model.state_dict()[name][mask])


def test_masks_are_applied_before_the_first_figures() -> None:
    """Epoch 0 is the masked network."""
    model = network()
    everything = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in model.named_parameters()}
    result = FineTune(epochs=0).run(model, batches(), F.cross_entropy, masks=everything, progress=False)
    assert result.history[0].validation_loss == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "masks",
    [
        {"0.wait": torch.ones(8, 4, dtype=torch.bool)},
        {"0.weight": torch.ones(8, dtype=torch.bool)},
        {"0.bias": torch.ones(8)},
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: dict[str, Tensor]) -> None:
    """Unknown names, other shapes and numbers in place of truth values are the caller's mistake."""
    with pytest.raises(ValueError, match=r"Expected .*mask.* Got .* Pass masks made for this network"):
        FineTune().run(network(), batches(), F.cross_entropy, masks=masks, progress=False)


def test_frozen_parameters_stay() -> None:
    """What requires no gradient is not trained, and a network without anything else is refused."""
    model = network()
    model[0].requires_grad_(False)
    result = FineTune().run(model, batches(), F.cross_entropy, progress=False)
    before, after = model.state_dict(), result.model.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after["4.weight"], before["4.weight"])
    with pytest.raises(ValueError, match="require a gradient"):
        FineTune().run(model.requires_grad_(False), batches(), F.cross_entropy, progress=False)


def test_a_loss_that_explodes_suggests_a_smaller_rate() -> None:
    """The run stops at once, with the rate that was too large and one to try."""
    data = [(1e3 * inputs, 1e3 * inputs[:, :1]) for inputs, _ in batches()]
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    with pytest.raises(FloatingPointError, match=r"rate of 10\. Pass a smaller one, as in FineTune\(lr=1\)"):
        FineTune(lr=10.0, epochs=9).run(model, data, F.mse_loss, progress=False)


def test_a_loss_that_is_nan_from_the_start_blames_something_else() -> None:
    """Before the first step no learning rate can be at fault."""
    data = [(inputs * math.nan, targets) for inputs, targets in batches()]
    with pytest.raises(FloatingPointError, match="before the first step. Check the data"):
        FineTune().run(network(), data, F.cross_entropy, progress=False)


def test_an_interruption_goes_through() -> None:
    """Ctrl-C in the middle of an epoch reaches the caller, and the original is untouched."""
    model = network()
    before = copy.deepcopy(model)
    calls = iter(range(100))

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return F.cross_entropy(output, targets)

    with pytest.raises(KeyboardInterrupt):
        FineTune().run(model, batches(), loss, progress=True)
    assert same(model, before)


def test_whole_batches_of_a_list_are_held_out() -> None:
    """Training and held-out batches are apart and together everything; each epoch has its own order."""
    data = batches(4)
    split = split_data(check_data(data), 0.25, seed=0)
    held = {id(inputs) for inputs, _ in split.held_out}
    first, second = ([id(inputs) for inputs, _ in split.training(epoch)] for epoch in (1, 2))
    assert (len(held), len(first), split.steps) == (6, 18, 18)
    assert held.isdisjoint(first)
    assert sorted(first) == sorted(second)
    assert first != second


def test_at_least_one_of_two_batches_is_held_out_and_one_is_left() -> None:
    """Small and large fractions leave something on both sides."""
    for fraction in (0.01, 0.99):
        split = split_data(check_data(batches(48)), fraction, seed=0)
        assert (len(list(split.held_out)), split.steps) == (1, 1)


@pytest.mark.parametrize(("data", "fraction"), [(batches(96), 0.1), (batches(), 0.0)])
def test_without_a_held_out_part_it_says_so(data: list[tuple[Tensor, Tensor]], fraction: float) -> None:
    """A single batch, or validation=0, is validated on the training data, and the notes tell."""
    result = FineTune(validation=fraction).run(network(), data, F.cross_entropy, progress=False)
    assert "Nothing was held out" in result.notes[0]


@pytest.mark.parametrize("shuffle", [True, False])
def test_examples_of_a_loader_are_held_out(shuffle: bool) -> None:
    """A loader that shuffles would mix held-out batches into the training ones; single examples stay apart."""
    inputs = torch.arange(40.0)
    loader = DataLoader(TensorDataset(inputs, inputs), batch_size=13, shuffle=shuffle)
    split = split_data(check_data(loader), 0.25, seed=0)
    held = torch.cat([rows for rows, _ in split.held_out]).tolist()
    epochs = [torch.cat([rows for rows, _ in split.training(epoch)]).tolist() for epoch in (1, 1, 2)]
    assert len(held) == 10
    assert sorted(held + epochs[0]) == inputs.tolist()
    assert epochs[0] == epochs[1] != epochs[2]


def test_no_training_batch_has_a_single_example() -> None:
    """BatchNorm cannot train on one: 41 examples less 4 in batches of 12 would leave one."""
    inputs = torch.randn(41, 4)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(41, dtype=torch.int64)), batch_size=12, shuffle=True)
    result = FineTune(epochs=1).run(network(), loader, F.cross_entropy, progress=False)
    assert len(result.history) == 2


def test_a_batch_sampler_of_ones_own_is_left_alone() -> None:
    """A loader that cannot be rebuilt loses whole batches, in its own order."""
    data = TensorDataset(*two_moons())
    loader = DataLoader(data, batch_sampler=[[0, 1], [2, 3], [4, 5]])
    split = split_data(check_data(loader), 0.1, seed=0)
    assert (len(list(split.held_out)), len(list(split.training(1)))) == (1, 2)


def test_large_batches_are_cut() -> None:
    """With batch_size no step sees more examples than that."""
    seen = []

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        seen.append((len(targets), output.requires_grad))
        return F.cross_entropy(output, targets)

    FineTune(epochs=1, batch_size=5).run(network(), batches(16), loss, progress=False)
    assert {size for size, training in seen if training} <= {4, 5}
    assert sum(size for size, training in seen if training) == 80


def test_inputs_of_several_tensors_are_trained_on() -> None:
    """Dictionaries of inputs are cut and passed by name."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.inner(left + right)

    data = [({"left": inputs, "right": inputs}, targets) for inputs, targets in batches()]
    result = FineTune(batch_size=8).run(Sum(), data, F.cross_entropy, progress=False)
    assert result.best_epoch > 0


def test_a_graph_that_has_no_training_mode_is_trained_as_it_is() -> None:
    """Exported graphs refuse train(); they are trained in evaluation mode, and the notes say so."""
    model = torch.export.export(network().eval(), (torch.zeros(16, 4),)).module()
    result = FineTune().run(model, batches(), F.cross_entropy, progress=False)
    assert result.history[result.best_epoch].validation_loss < result.history[0].validation_loss
    assert "has no training mode" in result.notes[0]


def test_data_in_a_stream_is_counted_and_split() -> None:
    """An iterable without a length works as long as it starts again each time."""

    class Stream:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from batches()

    result = FineTune().run(network(), Stream(), F.cross_entropy, progress=False)
    assert result.best_epoch > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1}, {"epochs": 1.5}, {"lr": 0.0}, {"lr": math.nan}, {"momentum": 1.0}, {"weight_decay": -1.0},
        {"batch_size": 0}, {"validation": 1.0}, {"validation": -0.1}, {"optimizer": "adam"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    """Each is refused where it enters, with what was expected."""
    with pytest.raises(ValueError, match=r"Expected .* Got .* Pass one to FineTune"):
        FineTune(**settings)
