"""What callers bring to ``solve``: wrong arguments are refused in words, parts of their own go through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.problem import SelectionProblem
from solvers.result import Result, Termination, TerminationReason
from structprune import Budget, FineTune, Scores, TraceError
from structprune.criteria import BNScale, Magnitude, Random, Taylor
from structprune.structures import Structures, blocks, kernels, nm
from tests import laws
from tests.cases import BY_NAME
from tests.test_solve import WITH_DATA, images, mlp, plain, quiet, same, state

# --- wrong arguments -----------------------------------------------------------------------------------------------


def with_nan() -> nn.Module:
    """A network with one weight that is not a number."""
    model = mlp()
    with torch.no_grad():
        model.get_parameter("fc2.weight")[1, 2] = float("nan")
    return model


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "Expected finite weights.*'fc2.weight'.*Load", lambda: quiet(with_nan(), Budget(macs=0.5))),
        (
            TraceError,
            r"Expected an example input that MLP can run. Got shapes \[\(2, 7\)\].*Pass example=",
            lambda: quiet(mlp(), Budget(macs=0.5), example=torch.randn(2, 7)),
        ),
        (
            ValueError,
            r"Expected data that MLP can run. Got inputs of shapes \[\(4, 7\)\].*Pass batches",
            lambda: quiet(mlp(), Budget(macs=0.5), data=[(torch.randn(4, 7), torch.zeros(4).long())]),
        ),
        (
            TypeError,
            "Expected data that can be iterated several times. Got a generator. Pass a list",
            lambda: quiet(mlp(), Budget(macs=0.5), data=(pair for pair in [(torch.randn(4, 10), torch.zeros(4))])),
        ),
        (
            TypeError,
            "Expected data that can be iterated several times. Got a generator",
            lambda: quiet(mlp(), Budget(macs=0.5), validation=(p for p in [(torch.randn(4, 10), torch.zeros(4))])),
        ),
        (ValueError, "Expected at least one batch. Got none", lambda: quiet(mlp(), Budget(macs=0.5), data=[])),
        (
            ValueError,
            r"Expected data for finetune=. Got None. Pass data=",
            lambda: quiet(mlp(), Budget(macs=0.5), finetune=FineTune(epochs=1)),
        ),
        (
            ValueError,
            r"Expected data for method=. Got None. Pass data=",
            lambda: quiet(mlp(), Budget(macs=0.5), method=TrainThenPrune()),
        ),
        (
            ValueError,
            "Expected data for Taylor.*Pass data=",
            lambda: quiet(mlp(), Budget(macs=0.5), criterion=Taylor()),
        ),
        (TypeError, r"Expected a Budget. Got 0.5. Pass for instance Budget", lambda: quiet(mlp(), 0.5)),  # type: ignore[arg-type]
        (TypeError, "Expected a Budget. Got {'macs'", lambda: quiet(mlp(), {"macs": 0.5})),  # type: ignore[arg-type]
        (
            TypeError,
            "Expected model to be a torch.nn.Module. Got OrderedDict",
            lambda: quiet(mlp().state_dict(), Budget(macs=0.5)),  # type: ignore[arg-type]
        ),
        (
            TypeError,
            "Expected a criterion object. Got Magnitude itself. Pass Magnitude",
            lambda: quiet(mlp(), Budget(macs=0.5), criterion=Magnitude),  # type: ignore[arg-type]
        ),
        (
            TypeError,
            "Expected a criterion object. Got 'taylor'",
            lambda: quiet(mlp(), Budget(macs=0.5), criterion="taylor"),  # type: ignore[arg-type]
        ),
        (
            TypeError,
            "Expected a solver object. Got Magnitude",
            lambda: quiet(mlp(), Budget(macs=0.5), solver=Magnitude()),  # type: ignore[arg-type]
        ),
        (
            TypeError,
            "Expected a finetune object. Got 2. Pass FineTune",
            lambda: quiet(mlp(), Budget(macs=0.5), finetune=2),  # type: ignore[arg-type]
        ),
        (
            TypeError,
            "Expected loss to be a function",
            lambda: quiet(mlp(), Budget(macs=0.5), data=[(torch.randn(4, 10), torch.zeros(4))], loss="ce"),  # type: ignore[arg-type]
        ),
        (
            ValueError,
            "Expected class indices.*Pass loss=",
            lambda: quiet(mlp(), Budget(macs=0.5), data=[(torch.randn(4, 10), torch.zeros(4))]),
        ),
        (
            TypeError,
            "Expected Structures. Got list",
            lambda: quiet(mlp(), Budget(macs=0.5), structures=[1]),  # type: ignore[arg-type]
        ),
        (
            ValueError,
            r"Expected structures of this MLP. Got some of another network: 'conv1.weight' and \d+ more",
            lambda: quiet(mlp(), Budget(macs=0.5), structures=laws.channels_of(BY_NAME["plain"])),
        ),
        (
            ValueError,
            "Expected blocks that know the network's graph.*Pass example=",
            lambda: quiet(mlp(), Budget(macs=0.5), structures=blocks(mlp(), (4, 4))),
        ),
        (
            TypeError,
            "Expected Scores from by_hand. Got ndarray. Return Scores",
            lambda: quiet(mlp(), Budget(macs=0.5), criterion=by_hand),  # type: ignore[arg-type]
        ),
        (
            ValueError,
            "Expected a solver whose choice is its selection and within",
            lambda: quiet(mlp(), Budget(macs=0.5), solver=Spendthrift()),
        ),
    ],
)
def test_what_is_wrong_is_said(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    """A wrong argument is an error that says what was expected, what came, and what to do."""
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def by_hand(model: nn.Module, structures: Structures, data: Any, loss: Any) -> np.ndarray:
    """A criterion that forgets to make Scores."""
    return np.ones(structures.n)


class Spendthrift:
    """A solver that keeps everything, whatever is allowed."""

    def solve(self, problem: SelectionProblem) -> Result:
        choice = np.array([len(group) - 1 for group in problem.groups])
        termination = Termination(TerminationReason.HEURISTIC, None, "Kept everything.")
        return Result(choice, problem.selection(choice), None, termination, 0, 0.0)


def test_infinite_buffers_are_no_mistake() -> None:
    """A causal mask holds minus infinity; only weights must be finite."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
            self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.b(F.relu(self.a(x))) @ x[:, :4, :4] + self.mask).softmax(-1)

    pruned = quiet(Masked(), Budget(params=0.7), example=torch.randn(2, 4, 6))
    assert not pruned.selection.all()


# --- parts that callers bring --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainThenPrune:
    """A training-time method in small: trains a copy, asks the solver once on the way, and scores what it trained."""

    steps: int = 5

    def __call__(
        self,
        model: nn.Module,
        structures: Structures,
        allocate: Callable[[Scores], Result],
        task: Any,
        seed: int,
        progress: bool,
    ) -> tuple[nn.Module, Scores]:
        trained = copy.deepcopy(model).train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
        scores = Magnitude()(trained, structures)
        assert allocate(scores).choice is not None
        for step, (inputs, targets) in enumerate(task.data):
            if step == self.steps:
                break
            optimizer.zero_grad()
            task.loss(trained(inputs), targets).backward()
            optimizer.step()
        return trained, Taylor()(trained, structures, task.data, task.loss)


def test_a_method_trains_and_decides() -> None:
    """The network that a method trained is what gets cut, its scores decide, and the report names it."""
    model, data = plain(), images()
    before = state(model)
    pruned = quiet(model, Budget(macs=0.5), data=data, method=TrainThenPrune())
    assert same(before, state(model))
    assert pruned.report.criterion == "TrainThenPrune"
    assert pruned.report.costs[0].predicted <= (pruned.report.costs[0].allowed or 0)
    kept = pruned.selection[pruned.structures.axes[0].entries]
    weight = pruned.model.get_parameter("conv1.weight")
    assert weight.shape[0] == kept.sum()
    assert not torch.equal(weight, model.get_parameter("conv1.weight")[torch.from_numpy(kept)])


def test_a_function_is_a_criterion() -> None:
    """Any callable that returns Scores will do, and its name is in the report; the best by it are kept."""

    def last_first(model: nn.Module, structures: Structures, data: Any, loss: Any) -> Scores:
        return Scores(np.arange(structures.n, dtype=float) + 1, notes=("the later the better",))

    pruned = quiet(mlp(), Budget(params=0.6), criterion=last_first)
    assert pruned.report.criterion == "last_first"
    assert "the later the better" in pruned.report.notes
    for axis in pruned.structures.axes:
        kept = pruned.selection[axis.entries]
        assert (np.diff(kept.astype(int)) >= 0).all()


def test_a_solver_without_a_bound_has_no_certificate() -> None:
    """An object with ``solve`` will do; where it proves nothing, bound and gap are None, not made up."""

    class Narrowest:
        def solve(self, problem: SelectionProblem) -> Result:
            choice = problem.minimum_choice
            termination = Termination(TerminationReason.HEURISTIC, None, "Took the narrowest.")
            return Result(choice, problem.selection(choice), None, termination, 0, 0.0)

    pruned = quiet(mlp(), Budget(params=0.6), solver=Narrowest())
    assert pruned.certificate is None
    assert pruned.report.bound is None
    assert pruned.report.gap is None
    assert [axis.after for axis in pruned.report.axes] == [1, 1]
    assert "Took the narrowest." in str(pruned)


@pytest.mark.parametrize(
    "criterion", [Magnitude(p=1), Taylor(), BNScale(otherwise=Magnitude()), Random(seed=2)], ids=repr
)
def test_any_criterion_goes_through(criterion: Any) -> None:
    """The other criteria meet the same budget; batch norm statistics are measured for them."""
    model = BY_NAME["residual"].make()[0]
    pruned = quiet(model, Budget(macs=0.5), data=images(), criterion=criterion)
    assert pruned.report.criterion == type(criterion).__name__
    assert pruned.report.costs[0].counted == pruned.report.costs[0].predicted
    before = dict(model.named_buffers())["block1.bn2.running_var"]
    assert not set(dict(pruned.model.named_buffers())["block1.bn2.running_var"].tolist()) & set(before.tolist())


@pytest.mark.parametrize("with_data", WITH_DATA, ids=["free", "data"])
@pytest.mark.parametrize(
    "find",
    [
        lambda m, x: blocks(m, (4, 4), example=x),
        lambda m, x: kernels(m, example=x),
        lambda m, x: nm(m, 2, 4, example=x),
    ],
    ids=["blocks", "kernels", "nm"],
)
def test_structures_inside_weights_are_zeros_and_said_to_be(find: Any, with_data: bool) -> None:
    """Blocks, kernels and N:M meet the budget as dense layers that hold zeros, and a note says so."""
    model, example = BY_NAME["flatten"].make()
    structures = find(model, example)
    options: dict[str, Any] = {"data": [(example, torch.tensor([1, 2]))]} if with_data else {}
    budget = Budget(params=0.8) if structures.kind == "nm" else Budget(macs=0.6)
    pruned = quiet(model, budget, structures=structures, example=example, **options)
    assert pruned.built_as == "masked"
    assert any("zeros" in note for note in pruned.report.notes)
    for row in pruned.report.costs:
        assert row.counted is None
        assert row.allowed is None or row.predicted <= row.allowed
    named = dict(pruned.model.named_parameters())
    for name, mask in structures.masks(pruned.selection).items():
        assert named[name].shape == mask.shape
        assert not named[name][~mask].any()
    zeros = sum(int((parameter == 0).sum()) for parameter in named.values())
    assert zeros >= int(structures.count[~pruned.selection].sum()) > 0
    if with_data:
        assert pruned.report.criterion == "Fisher"


def test_zeros_survive_a_fine_tune() -> None:
    """Blocks that were removed stay zero while the rest is trained."""
    model, data = mlp(), [(torch.randn(16, 10), torch.randint(0, 5, (16,))) for _ in range(4)]
    structures = blocks(model, (4, 2), example=data[0][0])
    tune = FineTune(epochs=1, lr=0.05)
    pruned = quiet(model, Budget(params=0.5), structures=structures, data=data, finetune=tune)
    named = dict(pruned.model.named_parameters())
    for name, mask in structures.masks(pruned.selection).items():
        assert not named[name][~mask].any()
        assert not torch.equal(named[name][mask], model.get_parameter(name)[mask])
