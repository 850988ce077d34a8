"""Reading networks into graphs: what is accepted, what is recorded, what is refused and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structprune.axes import trace
from structprune.compile import compile
from structprune.errors import TraceError
from structprune.structures import channels
from tests.agreement import compiled_equals_masked, counted_equals_predicted
from tests.generated import random_selection


class TwoLayers(nn.Module):
    """linear, something, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class Branches(TwoLayers):
    """Takes the sigmoid of some inputs and the cosine of others."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden.sigmoid() if hidden.sum() > 0 else hidden.cos()


class Repeats(TwoLayers):
    """As many steps as the input is large."""

    def between(self, hidden: Tensor) -> Tensor:
        for _ in range(int(hidden.abs().sum() * 10)):
            hidden = hidden.relu() + 0.1
        return hidden


class ReadsNumbers(TwoLayers):
    """The same operators always, with a number that is read from the input."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * float(hidden.detach().abs().mean().item())


class LeavesTorch(TwoLayers):
    """Goes through numpy, where nothing can be recorded."""

    def between(self, hidden: Tensor) -> Tensor:
        return torch.from_numpy(np.maximum(hidden.detach().numpy(), 0))


@pytest.mark.parametrize("kind", [Branches, Repeats, ReadsNumbers, LeavesTorch])
def test_data_dependent_networks_are_refused_by_name(kind: type[nn.Module]):
    """Whatever depends on the input's values gives a TraceError that names the model and what to do."""
    with pytest.raises(TraceError, match=rf"Got {kind.__name__}, whose.*data-dependent control flow.*Prune the parts"):
        channels(kind(), torch.randn(2, 4))


def test_refusals_print_nothing(capfd):
    """What export has to say about a network that it refuses stays out of the user's terminal."""
    with pytest.raises(TraceError):
        channels(Branches(), torch.randn(2, 4))
    assert capfd.readouterr() == ("", "")


def test_wrong_example_shape_says_what_was_given():
    """The message holds the shapes given and what the network's forward raised."""
    with pytest.raises(TraceError, match=r"Got shapes \[\(2, 5\)\].*RuntimeError: mat1 and mat2.*Pass example="):
        channels(TwoLayers(), torch.randn(2, 5))


class PythonTricks(TwoLayers):
    """Export refuses the numbers and lists; they do not depend on the input, so a recording is as good."""

    def between(self, hidden: Tensor) -> Tensor:
        steps = max(torch.tensor([1, 2]).tolist())
        cache = {step: hidden * step for step in range(steps + 1)}
        if not hidden.isfinite().all():
            raise ValueError("not finite")
        hidden = cache[int(torch.tensor(steps).item())]
        hidden += 0.0
        return hidden.relu_()


class Detector(nn.Module):
    """Returns the boxes of each image whose score is high enough: how many depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.body(self.features(x).relu()).relu()
        boxes, scores = self.boxes(x).flatten(2).transpose(1, 2), self.scores(x).flatten(1)
        found = []
        for i in range(len(x)):
            keep = scores[i] > scores[i].mean()
            found.append({"boxes": boxes[i][keep], "scores": scores[i][keep].sigmoid()})
        return found


@pytest.mark.parametrize(
    ("model", "example", "axes"),
    [(PythonTricks(), torch.randn(2, 4), ["first"]), (Detector(), torch.randn(2, 3, 6, 6), ["features", "body"])],
    ids=["python", "detector"],
)
def test_recorded_networks_compile(model: nn.Module, example: Tensor, axes: list[str]):
    """Export refuses them, a recording accepts them, and they are cut like any other."""
    structures = channels(model, example)
    assert structures.labelled is not None
    assert structures.labelled.graph.recorded
    assert [axis.name for axis in structures.axes] == axes
    compiled = compile(model, structures, random_selection(structures, 0.5, 0), example)
    assert compiled.built_as == "module"
    assert compiled.error <= 1e-10


def test_recordings_know_their_modules():
    """A reason names the module that ran the operator, in a recording too."""
    reasons = [pinned.reason for pinned in channels(PythonTricks(), torch.randn(2, 4)).pinned]
    assert "is tied by addmm in 'first' to a dimension that is an input of the network" in reasons


@torch.library.custom_op("structprune_tests::reverse", mutates_args=())
def reverse(x: Tensor) -> Tensor:
    """An operator that no rule knows."""
    return 2 * x.flip(-1).clone()


@reverse.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Reverse(nn.Module):
    """The unknown operator as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return reverse(x)


def test_an_operator_without_a_rule_pins_and_is_named():
    """What goes through it stays whole, with operator and module in the reason; the rest is pruned, correctly."""
    model = nn.Sequential(nn.Linear(4, 6), Reverse(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    structures = channels(model, torch.randn(2, 4))
    assert [axis.name for axis in structures.axes] == ["2"]
    reasons = {(pinned.tensor, pinned.dim): pinned.reason for pinned in structures.pinned}
    operator = "structprune_tests.reverse.default, an operator without a rule, in '1'"
    assert reasons["0.weight", 0] == f"goes into {operator}"
    assert reasons["2.weight", 1] == f"is tied by linear in '2' to a dimension that comes out of {operator}"
    assert structures.labelled is not None
    assert structures.labelled.unknown == {"structprune_tests.reverse.default": "1"}
    compiled_equals_masked(model, torch.randn(2, 4), structures, random_selection(structures, 0.5, 0))


class ManyArguments(nn.Module):
    """Optional arguments by position and name; nested outputs, of which some are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_y, self.out = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: float = 1.0, phase: Tensor | None = None):
        hidden = self.of_x(x).tanh()
        if y is not None:
            hidden = hidden + self.of_y(y).tanh()
        if phase is not None:
            hidden = hidden * phase.sin()
        return {"logits": self.out(hidden) * scale, "rest": (x.sum(1), "text")}


@pytest.mark.parametrize(
    "example",
    [
        torch.randn(3, 4),
        (torch.randn(3, 4), torch.randn(3, 3)),
        {"y": torch.randn(3, 3), "x": torch.randn(3, 4), "scale": 2.0},
        {"x": torch.randn(3, 4), "phase": torch.tensor(0.5)},
        torch.randn(1, 4),
        (torch.randn(1, 4), torch.randn(1, 3)),
    ],
    ids=["tensor", "tuple", "dict", "scalar tensor", "one example", "one example of two"],
)
def test_all_kinds_of_arguments_and_outputs(example):
    """Tensors, tuples, dicts, numbers, batches of one; the outputs keep their structure."""
    model = ManyArguments()
    structures = channels(model, example)
    assert [axis.size for axis in structures.axes] == [6]
    selection = random_selection(structures, 0.5, 0)
    compiled = compiled_equals_masked(model, example, structures, selection)
    counted_equals_predicted(model, example, structures, selection, compiled)


def test_a_batch_of_one_is_traced_as_two():
    """So that a dimension of examples is not mistaken for a broadcast one; the costs are per example anyway."""
    model = ManyArguments()
    labelled = channels(model, torch.randn(1, 4)).labelled
    assert labelled is not None
    assert len(labelled.batch) == 2


class SequenceFirst(nn.Module):
    """torch's default order for recurrent layers and transformers: the batch is the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(5, 8), nn.LSTM(8, 8)
        self.encoder, self.out = nn.TransformerEncoderLayer(8, 2, 12), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(x).relu())
        return self.out(self.encoder(hidden)[-1])


def test_networks_with_the_sequence_first_compile():
    """The examples cannot be told from the steps, so costs are those of the whole input; all else is the same."""
    model, example = SequenceFirst().eval(), torch.randn(4, 3, 5)
    structures = channels(model, example)
    assert {"embed", "encoder.linear1"} <= {axis.name for axis in structures.axes}
    selection = random_selection(structures, 0.5, 0)
    compiled = compiled_equals_masked(model, example, structures, selection)
    counted_equals_predicted(model, example, structures, selection, compiled)


def test_placeholders_keep_their_names_in_copies():
    """fx renames an argument called 'input' when a graph is copied; the names in the graph are those of the copy."""
    graph = trace(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3))
    copied = torch.fx.Graph()
    copied.graph_copy(graph.module.graph, {})
    names = [node.name for node in copied.nodes if node.op == "placeholder"]
    assert set(graph.inputs) | set(graph.tensors) == set(names)


def test_tracing_leaves_the_model_as_it_was():
    """Modes and weights are the same afterwards, also when a recording was needed."""
    model = PythonTricks().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, torch.randn(2, 4))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.first._forward_hooks
