"""Discrimination-aware selection through the whole line: budgets, widths, resuming, kinds of structures, controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solvers.result import Result
from structprune.budget import Budget
from structprune.criteria import Magnitude
from structprune.criteria.discrimination import Discrimination
from structprune.criteria.scores import Scores
from structprune.methods import discrimination_aware, layer_selection
from structprune.methods.discrimination_aware import DiscriminationAware
from structprune.methods.picking import Picking
from structprune.methods.stages import StageTraining
from structprune.solve import solve
from structprune.structures import Structures, blocks, channels, kernels, nm
from structprune.task import Task, checked_task

Data = list[tuple[Tensor, Tensor]]
QUICK = StageTraining(batch_size=16)
HALF = DiscriminationAware(heads=1, widths=0.5, stages=QUICK, picking=Picking(steps=2))


def network() -> nn.Sequential:
    """Three convolutions with batch norm, in evaluation mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()


def images(count: int = 48, seed: int = 1) -> Data:
    """Small images whose brightness tells the class, in two batches."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    inputs = torch.randn(count, 2, 5, 5, generator=generator) + targets[:, None, None, None]
    return list(zip(inputs.split(count // 2), targets.split(count // 2), strict=True))


@pytest.fixture(scope="module")
def found() -> Structures:
    """The channels of the network."""
    return channels(network(), torch.zeros(2, 2, 5, 5))


def everything(structures: Structures) -> Callable[[Scores], Result]:
    """An allocation without a budget: on every axis the width of least loss."""

    def allocate(scores: Scores) -> Any:
        kept = np.zeros(structures.n, dtype=bool)
        for number, axis in enumerate(structures.axes):
            curve = scores.curves[number]
            kept[axis.start + curve.order[: int(curve.loss[axis.levels].argmin()) + int(axis.levels[0])]] = True
        return type("Found", (), {"selection": kept})()

    return allocate


def call(
    method: DiscriminationAware, structures: Structures, model: nn.Module | None = None, data: Data | None = None
) -> tuple[nn.Module, Scores]:
    """What ``solve`` calls, without a budget."""
    model, data = model or network(), data or images()
    task: Task = checked_task(model, Budget(params=1.0), None, data, F.cross_entropy, data[0][0][:2])
    return method(model, structures, everything(structures), task, 0, False)


def selected(structures: Structures, scores: Scores) -> np.ndarray:
    """The selection that the scores stand for."""
    kept = everything(structures)(scores).selection
    assert kept is not None
    return kept


# --- widths and budgets -----------------------------------------------------------------------------------------------


def test_given_widths_are_kept(found: Structures) -> None:
    """Half of every axis, in a network whose removed entries are zero and whose copy was trained."""
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained, scores = call(HALF, found, model)
    selection = selected(found, scores)
    assert found.widths(selection) == [axis.size // 2 for axis in found.axes]
    for name, mask in found.masks(selection).items():
        assert not trained.state_dict()[name][~mask].any()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_line_builds_what_the_method_chose(found: Structures) -> None:
    """Through ``solve``: allocated by layer reconstruction within the budget, with its certificate."""
    model = network()
    method = replace(HALF, widths=None)
    pruned = solve(
        *(model, Budget(macs=0.6)), structures=found, method=method, data=images(), loss=F.cross_entropy, progress=False
    )
    macs = next(row for row in pruned.report.costs if row.resource == "macs")
    assert macs.predicted <= 0.6 * macs.before
    assert pruned.result.certificate is not None
    assert any("per kept structure" in note for note in pruned.report.notes)
    assert pruned.model(images()[0][0]).shape == (24, 3)


@pytest.mark.parametrize("picking", [Picking(steps=2), Picking(expand=True)])
def test_the_adaptive_variant_allocates_by_its_own_loss(found: Structures, picking: Picking) -> None:
    """Widths come from this method's curves, which fall to zero, and the certificate is that of their problem."""
    method = replace(HALF, widths=None, adaptive=True, picking=picking)
    pruned = solve(
        *(network(), Budget(macs=0.5)), structures=found, method=method, data=images(), loss=F.cross_entropy,
        progress=False,
    )  # fmt: skip
    assert pruned.result.certificate is not None
    assert pruned.result.selection is not None
    assert 0 < pruned.result.selection.sum() < found.n
    for group in pruned.problem.groups:
        assert (np.diff(group.values) >= 0).all()
        assert len(np.unique(group.values)) > 2


def test_widths_beyond_the_budget_are_refused(found: Structures) -> None:
    """Given widths that cost too much are an error that says so."""
    with pytest.raises(ValueError, match="Expected widths within the budget"):
        solve(
            *(network(), Budget(macs=0.2)), structures=found, method=HALF, data=images(), loss=F.cross_entropy,
            progress=False,
        )  # fmt: skip


def test_widths_may_differ_by_axis(found: Structures) -> None:
    """By name; the other axes stay whole."""
    name = found.axes[0].name
    _, scores = call(replace(HALF, widths={name: 0.5}), found)
    widths = found.widths(selected(found, scores))
    assert widths == [found.axes[0].size // 2, *(axis.size for axis in found.axes[1:])]


def test_an_adaptive_stop_may_keep_fewer(found: Structures) -> None:
    """With a tolerance that no step after the first can meet, axes end early."""
    method = replace(HALF, widths=1.0, picking=Picking(tolerance=0.9), loss=Discrimination(lam=0.0))
    _, scores = call(method, found)
    assert selected(found, scores).sum() < found.n


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(
    found: Structures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stopped after any file, a stage's or an axis', the second call ends with the same weights and choice."""
    whole, scores = call(HALF, found)
    written = 0

    def stop(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written > after:
            raise KeyboardInterrupt
        save(*arguments)

    save = layer_selection.save
    with monkeypatch.context() as patch:
        patch.setattr("structprune.methods.stages.save", stop)
        patch.setattr(layer_selection, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            call(replace(HALF, folder=tmp_path), found)
    assert len(list(tmp_path.rglob("*.pt"))) == after
    again, other = call(replace(HALF, folder=tmp_path), found)
    assert np.array_equal(scores.values, other.values)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_other_settings_do_not_take_up_files(found: Structures, tmp_path: Path) -> None:
    """A folder may serve several runs: training with heads is shared, what is chosen is not."""
    call(replace(HALF, folder=tmp_path), found)
    before = {path.parent.name for path in tmp_path.rglob("*.pt")}
    call(replace(HALF, folder=tmp_path, lam=0.0), found)
    after = {path.parent.name for path in tmp_path.rglob("*.pt")}
    assert len([name for name in after if name.startswith("stages")]) == 1
    assert len([name for name in after - before if name.startswith("chosen")]) == 1


def test_equal_seeds_give_equal_results(found: Structures) -> None:
    """And nothing of torch's random state is used up."""
    model = network()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, scores = call(HALF, found, model)
    assert torch.rand(1) == expected
    second, other = call(HALF, found)
    assert np.array_equal(scores.values, other.values)
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())


# --- kinds of structures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picking", [Picking(steps=2), Picking(expand=True)])
def test_kernels_and_blocks_are_chosen_too(picking: Picking) -> None:
    """Single kernels of convolutions, and tiles of all weights: half of each, the removed ones zero."""
    for structures in (kernels(network()), blocks(network(), (2, 2))):
        trained, scores = call(replace(HALF, picking=picking), structures)
        selection = selected(structures, scores)
        for number, axis in enumerate(structures.axes):
            assert structures.widths(selection)[number] == round(axis.size / 2 - 1e-9), axis.name
        for name, mask in structures.masks(selection).items():
            assert not trained.state_dict()[name][~mask].any()


class Tied(nn.Module):
    """A stream that two blocks read and write, with attention over its pixels in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.relu(self.up(x)))
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return self.last(x.mean(1))


@pytest.mark.parametrize("picking", [Picking(steps=2), Picking(expand=True)])
def test_coupled_channels_and_heads_of_attention_are_chosen(picking: Picking) -> None:
    """The residual stream is one axis for all its readers; what no map reads goes by its Fisher loss."""
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(16, 5, 6, generator=generator), torch.randint(3, (16,), generator=generator))]
    model = Tied().eval()
    structures = channels(model, torch.zeros(2, 5, 6))
    pruned = solve(
        *(model, Budget(macs=0.5)),
        structures=structures,
        method=DiscriminationAware(heads=1, stages=QUICK, picking=picking),
        data=data,
        loss=F.cross_entropy,
        progress=False,
    )
    selection = pruned.result.selection
    assert selection is not None
    assert {8, 10, 2} <= {axis.size for axis in structures.axes}
    assert 0 < selection.sum() < structures.n


def test_entries_of_n_in_m_are_refused() -> None:
    """They are no groups that come one by one, and the message offers a criterion."""
    with pytest.raises(ValueError, match=r"Fisher\(\)"):
        call(HALF, nm(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), 2, 4))


# --- stages -----------------------------------------------------------------------------------------------------------


def test_stages_train_behind_the_places_that_are_done(
    found: Structures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage leaves the weights before the first head alone, and no stage touches batch norm's statistics."""
    seen: list[dict[str, Any]] = []

    def keep(path: Path, key: str, content: dict[str, Any]) -> None:
        seen.append(content)

    monkeypatch.setattr("structprune.methods.stages.save", keep)
    monkeypatch.setattr(layer_selection, "save", lambda *arguments: None)
    call(replace(HALF, heads=2, folder=tmp_path), found)
    names = [set(content["weights"]) for content in seen]
    assert names[0] > names[1] > names[2]
    assert "0.weight" in names[0] - names[1]
    assert not any("running" in name for name in names[0])
    original = dict(network().named_parameters())
    assert any(not torch.equal(original[name], tensor) for name, tensor in seen[0]["weights"].items())


def test_heads_learn(found: Structures, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few epochs a head's loss is below that of guessing."""
    losses: list[tuple[float, float]] = []
    train = discrimination_aware.train_stages

    def watched(*arguments: Any) -> Any:
        stages = train(*arguments)
        losses.extend(stages.losses)
        return stages

    monkeypatch.setattr(discrimination_aware, "train_stages", watched)
    call(replace(HALF, stages=replace(QUICK, head_epochs=10)), found)
    assert losses[0][0] < 0.8 * float(np.log(3))


def test_without_heads_the_network_judges_itself(found: Structures) -> None:
    """``heads=0`` takes the network's own loss for every layer."""
    _, scores = call(replace(HALF, heads=0), found)
    assert any("0 heads" in note for note in scores.notes)
    assert selected(found, scores).sum() == found.n // 2


# --- controls ---------------------------------------------------------------------------------------------------------


def test_a_ranking_decides_instead_of_gains(found: Structures) -> None:
    """With magnitudes as ranking, the largest half of each axis stays, and the fits are the same kind."""
    method = replace(HALF, ranking=Magnitude(), stages=replace(QUICK, epochs=0))
    _, scores = call(method, found)
    values = Magnitude()(network(), found).values
    selection = selected(found, scores)
    for axis in found.axes:
        best = set(np.argsort(-values[axis.entries], kind="stable")[: axis.size // 2].tolist())
        assert set(np.flatnonzero(selection[axis.entries]).tolist()) == best


def test_backward_drops_to_the_same_widths(found: Structures) -> None:
    """PocketFlow's variant, under its own name, keeps as many."""
    _, scores = call(replace(HALF, picking=Picking(steps=2, backward=True)), found)
    assert found.widths(selected(found, scores)) == [axis.size // 2 for axis in found.axes]


@pytest.mark.parametrize("other", [{"steps": 2}, {"tolerance": 0.1}, {"backward": True}])
def test_an_expansion_goes_with_nothing_else(other: dict[str, Any]) -> None:
    """It has no steps, no stop on the way and no way back."""
    with pytest.raises(ValueError, match="expand alone"):
        Picking(expand=True, **other)


@pytest.mark.parametrize(
    "settings", [{"heads": -1}, {"widths": 1.5}, {"widths": 0.5, "adaptive": True}, {"widths": {"0": 0.0}}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """Where they enter."""
    with pytest.raises(ValueError, match="Expected"):
        DiscriminationAware(**settings)


def test_names_of_unknown_axes_are_refused(found: Structures) -> None:
    """With some names that there are."""
    with pytest.raises(ValueError, match="Expected names of axes"):
        call(replace(HALF, widths={"nowhere": 0.5}), found)
