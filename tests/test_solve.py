"""The straight line, from a network and a budget to a smaller network with its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from solvers.allocation import Allocation
from solvers.result import Limit, TerminationReason
from solvers.verify import is_feasible, is_maximal
from structprune import Budget, FineTune, InfeasibleBudgetError, Pruned, Report, Scores, masked, solve
from structprune.axes.graph import run
from structprune.criteria import Taylor
from structprune.structures import channels
from tests import laws, networks
from tests.cases import BY_NAME, CASES, Case, unsettle

WITH_DATA = [False, True]
NAMED = ["torch_encoder", "fused_attention", "channel_shuffle", "rotary_grouped_query", "tied_embeddings"]


def quiet(model: nn.Module, budget: Budget, **options: Any) -> Pruned:
    """``solve`` without progress."""
    return solve(model, budget, progress=False, **options)


@dataclass(frozen=True, eq=False)
class Solved:
    """A network in float64 at 0.6 of its macs, and whether it and the random state were the same bits afterwards."""

    model: nn.Module
    example: Any
    pruned: Pruned
    untouched: bool


@cache
def solved(case: Case, with_data: bool) -> Solved:
    """Solve a case once, because several facts are looked at."""
    model, example = case.make()
    model, example = model.double(), laws.double(example)
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 != 0)
    options: dict[str, Any] = {"data": laws.toy_data(example), "loss": laws.toy_loss} if with_data else {}
    structures = laws.channels_of(case, in_double=True)
    before, random = state(model), torch.get_rng_state()
    pruned = quiet(model, Budget(macs=0.6), example=example, structures=structures, **options)
    untouched = same(before, state(model)) and torch.equal(random, torch.get_rng_state())
    return Solved(model.eval(), example, pruned, untouched)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a network that solving must leave alone."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    others = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    integers = [{k: v for k, v in vars(m).items() if isinstance(v, int | tuple)} for m in model.modules()]
    flags = [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return {"tensors": tensors, "others": others, "modes": modes, "integers": integers, "flags": flags}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two states are equal bit for bit."""
    for part in ("tensors", "others"):
        if before[part].keys() != after[part].keys():
            return False
        if not all(torch.equal(tensor, after[part][name]) for name, tensor in before[part].items()):
            return False
    return all(before[part] == after[part] for part in ("modes", "integers", "flags"))


def images(count: int = 64, size: int = 8, classes: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images with classes."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, 3, size, size, generator=generator)
    targets = torch.randint(0, classes, (count,), generator=generator)
    return list(zip(inputs.split(16), targets.split(16), strict=True))


def plain() -> nn.Module:
    """A small convolutional network."""
    return BY_NAME["plain"].make()[0]


def mlp() -> nn.Module:
    """A small perceptron."""
    return BY_NAME["mlp"].make()[0]


def wide() -> nn.Module:
    """A perceptron in which no unit takes more than 0.5 % of any resource."""
    torch.manual_seed(0)
    return unsettle(nn.Sequential(nn.Linear(40, 300), nn.ReLU(), nn.Linear(300, 250), nn.ReLU(), nn.Linear(250, 10)))


# --- every small network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_budget_is_kept_and_used_up(case: Case, with_data: bool) -> None:
    """Used never exceeds allowed, in exact integers, and no further structure would fit."""
    pruned = solved(case, with_data).pruned
    row = pruned.report.costs[0]
    assert row.resource == "macs"
    assert row.allowed == int(row.before * 6 // 10)
    assert row.predicted <= row.allowed
    assert pruned.certificate is not None
    assert dict(pruned.certificate.used) == {"macs": row.predicted}
    pruned.certificate.verify(pruned.problem)
    assert pruned.result.choice is not None
    assert is_feasible(pruned.problem, pruned.result.choice)
    assert is_maximal(pruned.problem, pruned.result.choice)
    assert not pruned.selection.all()


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_predicted_is_counted(case: Case, with_data: bool) -> None:
    """Macs, parameters and bytes of the smaller network are those that the solver used."""
    report = solved(case, with_data).pruned.report
    assert [row.resource for row in report.costs] == ["macs", "params", "bytes"]
    for row in report.costs:
        if case.name == "einsum_attention" and row.resource == "macs":
            # einsum turns products over a dimension of one entry into other operators, and the report says so.
            assert row.counted is not None
            assert row.counted <= row.predicted
            assert (row.counted == row.predicted) != any("counted" in note for note in report.notes)
        else:
            assert row.counted == row.predicted


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_smaller_network_equals_the_masked_one(case: Case, with_data: bool) -> None:
    """In float64 they agree to 1e-9, and outputs have the shape of the dense network's."""
    found = solved(case, with_data)
    model, example, pruned = found.model, found.example, found.pruned
    assert pruned.report.max_error <= 1e-9
    dense, small = laws.outputs(model, example), laws.outputs(pruned.model, example)
    assert small.shape == dense.shape
    if not with_data:  # no weight is fitted and no statistic measured, so the masked network is known
        expected = laws.outputs(masked(model, pruned.structures, pruned.selection), example)
        assert float((small - expected).abs().max()) <= 1e-9 * float(expected.abs().max())


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize("name", NAMED)
def test_the_check_is_not_vacuous(name: str, with_data: bool) -> None:
    """On encoders, hard-coded views, shuffles, rotary and tied networks the removal changes the outputs."""
    found = solved(BY_NAME[name], with_data)
    other = laws.double(BY_NAME[name].inputs())  # the two examples of the data themselves can be fitted exactly
    dense, small = laws.outputs(found.model, other), laws.outputs(found.pruned.model, other)
    assert float((small - dense).abs().max()) > 1e-3 * float(dense.abs().max())


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_network_is_untouched(case: Case, with_data: bool) -> None:
    """Weights, buffers, modes, attributes, gradients and the random state are the same bits after solving."""
    assert solved(case, with_data).untouched


def test_the_network_is_untouched_after_an_error() -> None:
    """Whether the budget is impossible or a part fails in the middle, the network is as it was."""
    model = plain().train()
    before = state(model)

    def failing(*_: Any) -> Scores:
        raise RuntimeError("broken criterion")

    with pytest.raises(InfeasibleBudgetError):
        quiet(model, Budget(macs=10))
    with pytest.raises(RuntimeError, match="broken criterion"):
        quiet(model, Budget(macs=0.5), criterion=failing)
    with pytest.raises(ValueError, match="needs the gradients"):
        quiet(model, Budget(macs=0.5), criterion=Taylor())
    assert same(before, state(model))


@pytest.mark.parametrize("name", ["residual", "rotary_grouped_query"])
def test_equal_seeds_give_equal_results(name: str) -> None:
    """Selection, weights and report (but for times) repeat, whatever the global random state and the loader's order."""
    case = BY_NAME[name]
    model, example = case.make()
    torch.manual_seed(1)
    inputs = torch.cat([example] * 8) if example.dtype == torch.int64 else torch.randn(16, *example.shape[1:])
    loader = DataLoader(TensorDataset(inputs, torch.randn(16)), batch_size=4, shuffle=True)
    found = []
    for start in (3, 4):
        torch.manual_seed(start)
        tune = FineTune(epochs=1, lr=1e-3)
        structures = laws.channels_of(case)
        found.append(
            quiet(
                model, Budget(macs=0.6), data=loader, loss=laws.toy_loss, structures=structures, finetune=tune, seed=7
            )
        )
    first, second = found
    assert np.array_equal(first.selection, second.selection)
    weights = second.model.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in first.model.state_dict().items())
    assert replace(first.report, latency=None, seconds={}) == replace(second.report, latency=None, seconds={})


# --- data-free -----------------------------------------------------------------------------------------------------


def test_a_network_and_a_budget_are_enough() -> None:
    """The example is inferred, magnitudes decide, and the report says both."""
    pruned = quiet(plain(), Budget(macs=0.5))
    assert pruned.report.criterion == "Magnitude"
    assert any("inferred from the model: (2, 3, 64, 64)" in note for note in pruned.report.notes)
    assert pruned.report.costs[0].predicted <= pruned.report.costs[0].before // 2
    assert pruned.report.quality == ()
    assert pruned.report.predicted_loss is None
    assert run(pruned.model, pruned.example).shape == (2, 5)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3)), (2, 9)),
        (lambda: nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 5)), (2, 8)),
        (networks.GRUClassifier, (2, 8)),
        (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), (2, 3, 64)),
    ],
    ids=["linear", "embedding", "embedding and gru", "conv1d"],
)
def test_the_example_is_inferred(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """First layers that tell what goes in are enough."""
    pruned = quiet(build(), Budget(params=0.6))
    assert tuple(pruned.example.args[0].shape) == shape
    assert {row.resource: row for row in pruned.report.costs}["params"].predicted > 0


def test_a_network_that_does_not_tell_is_asked_about() -> None:
    """Where no example can be inferred, the error says what to pass."""
    with pytest.raises(ValueError, match=r"Expected an example input for Recommender\. Got none.*Pass example="):
        quiet(networks.Recommender(), Budget(macs=0.5))


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.3}, {"bytes": 0.7}], ids=str)
def test_nearly_all_of_the_budget_is_used(budget: dict[str, float]) -> None:
    """Where no structure takes more than 0.5 % of the network, at least 0.99 of what is allowed is used."""
    pruned = quiet(wide(), Budget(**budget))
    row = {row.resource: row for row in pruned.report.costs}[next(iter(budget))]
    assert row.allowed is not None
    assert 0.99 * row.allowed <= row.predicted <= row.allowed


def test_two_budgets_are_both_met() -> None:
    """Macs and parameters are capped at once; one is used up, neither is exceeded."""
    pruned = quiet(BY_NAME["residual"].make()[0], Budget(macs=0.5, params=0.35), example=torch.randn(2, 3, 8, 8))
    rows = {row.resource: row for row in pruned.report.costs}
    used = []
    for resource, fraction in (("macs", 0.5), ("params", 0.35)):
        row = rows[resource]
        assert row.allowed is not None
        assert row.counted == row.predicted <= row.allowed <= fraction * row.before
        used.append(row.predicted / row.allowed)
    assert max(used) > 0.95
    assert pruned.certificate is not None
    assert set(pruned.certificate.used) == {"macs", "params"}


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize("name", ["residual", "torch_encoder", "lstm", "tied_embeddings"])
def test_the_whole_budget_keeps_the_whole_network(name: str, with_data: bool) -> None:
    """A budget of 1.0 keeps every structure, and the outputs are the same bits."""
    model, example = BY_NAME[name].make()
    data = {"data": laws.toy_data(example), "loss": laws.toy_loss} if with_data else {}
    pruned = quiet(model, Budget(macs=1.0), example=example, structures=laws.channels_of(BY_NAME[name]), **data)
    assert pruned.selection.all()
    assert torch.equal(laws.outputs(pruned.model, example), laws.outputs(model, example))
    assert pruned.report.costs[0].counted == pruned.report.costs[0].before
    assert pruned.certificate is not None
    assert pruned.certificate.gap == 0
    assert pruned.model is not model


@pytest.mark.parametrize("resource", ["macs", "params", "bytes"])
@pytest.mark.parametrize("name", ["residual", "grouped", "fused_attention"])
def test_an_impossible_budget_names_the_least_that_works(name: str, resource: str) -> None:
    """The error tells resource and amount; exactly that amount then works, one less does not."""
    case = BY_NAME[name]
    model, example = case.make()
    options = {"example": example, "structures": laws.channels_of(case)}
    with pytest.raises(
        InfeasibleBudgetError, match=rf"Expected at least (\d+) {resource}.*Budget\({resource}="
    ) as caught:
        quiet(model, Budget(**{resource: 3}), **options)
    least = int(str(caught.value).split()[3])
    rows = {row.resource: row for row in quiet(model, Budget(**{resource: least}), **options).report.costs}
    assert rows[resource].counted == rows[resource].predicted == least
    with pytest.raises(InfeasibleBudgetError, match=f"at least {least}"):
        quiet(model, Budget(**{resource: least - 1}), **options)


def test_an_impossible_budget_is_refused_before_the_scoring() -> None:
    """What cannot work is not scored first, which may take minutes."""

    def unwanted(*_: Any) -> Scores:
        raise AssertionError("scored")

    with pytest.raises(InfeasibleBudgetError):
        quiet(mlp(), Budget(macs=5), criterion=unwanted)


def test_a_time_limit_is_never_optimal() -> None:
    """A solver that had no time says so, and still keeps within the budget."""
    case = BY_NAME["residual"]
    model, example = case.make()
    for limit in (0.0, 0.01):
        solver = Allocation(gap_tolerance=0, time_limit=limit)
        pruned = quiet(model, Budget(macs=0.6), example=example, structures=laws.channels_of(case), solver=solver)
        if pruned.termination.limit is Limit.TIME:
            assert pruned.termination.reason is not TerminationReason.OPTIMAL
            assert "time_limit" in pruned.report.termination_text
        assert pruned.report.costs[0].predicted <= (pruned.report.costs[0].allowed or 0)
    assert pruned.termination.reason in (TerminationReason.FEASIBLE, TerminationReason.OPTIMAL)


def test_a_latency_budget_is_kept(tmp_path, monkeypatch) -> None:
    """The predicted cost from measured tables is within the cap, which is a fraction of the measured dense time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    example = torch.randn(256, 40)
    pruned = quiet(wide(), Budget(latency_ns=0.7), example=example)
    row = {row.resource: row for row in pruned.report.costs}["latency_ns"]
    assert row.allowed is not None
    assert row.predicted <= row.allowed <= 0.7 * row.before
    assert row.counted is None
    assert not pruned.selection.all()
    assert pruned.report.latency is not None
    assert pruned.report.latency.batch == 256


# --- the report ----------------------------------------------------------------------------------------------------


def test_quality_is_reported_stage_by_stage() -> None:
    """Dense, pruned and fine-tuned network are measured on the held-out data, with recall per class."""
    train, held_out = images(64), images(48)
    tune = FineTune(epochs=1, lr=0.01)
    report = quiet(plain(), Budget(macs=0.5), data=train, validation=held_out, finetune=tune).report
    assert [row.stage for row in report.quality] == ["dense", "pruned", "fine-tuned"]
    assert all(row.examples == 48 and row.accuracy is not None for row in report.quality)
    assert report.per_class_recall is not None
    assert set(report.per_class_recall) == {"dense", "pruned", "fine-tuned"}
    classes = {str(label) for _, targets in held_out for label in targets.tolist()}
    assert all(set(recall) == classes for recall in report.per_class_recall.values())
    assert not any("validation=" in note for note in report.notes)


def test_quality_on_the_pruning_data_is_said_to_be() -> None:
    """Without held-out data the figures are from the data that pruning used, and a note says so."""
    report = quiet(plain(), Budget(macs=0.5), data=images()).report
    assert [row.stage for row in report.quality] == ["dense", "pruned"]
    assert any("pass validation=" in note for note in report.notes)


def test_held_out_data_alone_serve_the_report() -> None:
    """With validation and no data nothing is learnt from it: magnitudes decide, and the quality is measured."""
    model = plain()
    pruned = quiet(model, Budget(macs=0.5), validation=images(32))
    assert pruned.report.criterion == "Magnitude"
    assert [row.examples for row in pruned.report.quality] == [32, 32]
    free = quiet(model, Budget(macs=0.5), example=images()[0][0][:2])
    assert np.array_equal(pruned.selection, free.selection)


def test_the_report_of_a_run_survives_json(tmp_path) -> None:
    """Saved and read back, the report of a real run is equal, and prints the same."""
    report = quiet(plain(), Budget(macs=0.5, params=0.8), data=images()).report
    assert report.curves
    assert report.predicted_loss is not None
    report.to_json(tmp_path / "report.json")
    again = Report.from_json(tmp_path / "report.json")
    assert again == report
    assert str(again) == str(report)


def test_a_run_prints_as_a_dozen_lines() -> None:
    """What was kept where, cost before and after, bound and gap, latency before and after."""
    text = str(quiet(plain(), Budget(macs=0.5), data=images()))
    assert len(text.splitlines()) <= 24
    for word in ("PlainCNN", "macs", "gap", "latency", "quality", "kept"):
        assert word in text


def test_progress_goes_to_the_error_stream(capsys) -> None:
    """Nothing is printed on the output stream, and nothing at all with progress=False."""
    solve(mlp(), Budget(macs=0.6))
    assert capsys.readouterr().out == ""
    quiet(mlp(), Budget(macs=0.6))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_every_phase_is_timed() -> None:
    """The report says how long each step took."""
    report = quiet(mlp(), Budget(macs=0.6)).report
    assert list(report.seconds) == ["tracing", "costs", "scoring", "allocation", "re-fit", "compiling", "measuring"]


def test_one_example_counts_like_many() -> None:
    """Costs are per example: an example batch of one or of three predicts and counts the same."""
    model = plain()
    rows = [
        quiet(model, Budget(macs=0.6), structures=channels(model, x), example=x).report.costs
        for x in (torch.randn(1, 3, 8, 8), torch.randn(3, 3, 8, 8))
    ]
    assert rows[0] == rows[1]
