"""Laws of every training method: exact counts, nested removals, still weights, resumed runs, plain networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from structprune.methods import Reset, SequentialAttentionPP, Uniform
from structprune.methods.attention import Attentive
from structprune.methods.block_swaps import SwapHarness
from structprune.methods.groups import by_layer
from structprune.methods.phases import Kind
from structprune.methods.powerpropagation import PowerMasked
from tests.methods.loop import METHODS, STEPS, Run, small

KEEP = Uniform(0.7, min_structures=1)
every_method = pytest.mark.parametrize("name", METHODS)
sparse_methods = pytest.mark.parametrize("name", [name for name in METHODS if name != "dense"])


def same(first: dict, second: dict) -> bool:
    """Whether two states hold the same numbers, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@sparse_methods
def test_exactly_the_share_is_kept_at_every_sparse_step(name: str) -> None:
    """From the first step of a sparse or swapping phase to its last, each layer keeps k, ties or not."""
    run = Run.begin(METHODS[name], KEEP)
    counts: list[list[int]] = []

    def watch(run: Run) -> None:
        phase = run.hooks.setting.timeline.at(run.step)
        if phase.kind in (Kind.SPARSE, Kind.SWAP):
            kept = run.model.kept
            counts.append([int(kept[group.entries].sum()) for group in run.model.groups])

    run.advance(STEPS, watch)
    assert len(counts) >= STEPS // 10
    assert all(row == run.hooks.final.tolist() for row in counts)
    assert run.hooks.final.tolist() == KEEP.counts(run.task.structures, np.zeros(0), None).tolist()


@pytest.mark.parametrize("name", ["sequential attention", "acdc with removals", "powerpropagation", "gradual"])
def test_nothing_comes_back_within_a_removal(name: str) -> None:
    """Masks of a sparsifying phase and of the sparse one after it are nested; a dense phase brings all back."""
    run = Run.begin(METHODS[name], KEEP)
    seen: list[tuple[Kind, np.ndarray]] = []
    run.advance(STEPS, lambda run: seen.append((run.hooks.setting.timeline.at(run.step).kind, run.model.kept)))
    for (_, before), (kind, after) in zip(seen, seen[1:], strict=False):
        if kind is Kind.DENSE:
            assert after.all()
        else:
            assert not (after & ~before).any()


@every_method
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, adam: bool) -> None:
    """Saved in the middle of a phase and taken up by fresh objects, a run ends at the same numbers, bit for bit."""
    run = Run.begin(METHODS[name], KEEP, adam=adam)
    states = [run.advance(stop).state() for stop in (17, 58, 101)]
    run.advance(STEPS)
    for state in states:
        resumed = Run.begin(METHODS[name], KEEP, adam=adam).take_up(state).advance(STEPS)
        assert np.array_equal(resumed.model.kept, run.model.kept)
        assert same(resumed.model.state_dict(), run.model.state_dict())
        assert len(resumed.hooks.supports) == len(run.hooks.supports)


@every_method
def test_equal_seeds_give_equal_runs(name: str) -> None:
    """Two runs from one seed agree bit for bit."""
    first, second = (Run.begin(METHODS[name], KEEP, seed=3).advance(STEPS) for _ in range(2))
    assert same(first.model.state_dict(), second.model.state_dict())


def test_random_masks_follow_the_seed() -> None:
    """Another seed draws another mask."""
    first, second = (Run.begin(METHODS["random"], KEEP, seed=seed).advance(1) for seed in (0, 1))
    assert not np.array_equal(first.model.kept, second.model.kept)


@every_method
def test_the_folded_network_is_plain_and_computes_the_same(name: str) -> None:
    """At the end of a run, weights with all gates in them give the wrapped network's outputs to 1e-5."""
    run = Run.begin(METHODS[name], KEEP).advance(STEPS)
    plain = run.model.fold(run.task.structures).eval()
    run.model.eval()
    inputs = run.task.data[0][0]
    torch.testing.assert_close(plain(inputs), run.model(inputs), rtol=1e-5, atol=1e-5)
    assert plain.state_dict().keys() == run.task.model.state_dict().keys()
    for tensor, mask in run.task.structures.masks(run.model.kept).items():
        assert not plain.get_parameter(tensor)[~mask].any()


@every_method
def test_the_callers_network_is_left_alone(name: str) -> None:
    """Training happens on a copy."""
    task = small()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    Run.begin(METHODS[name], KEEP, task=task).advance(30)
    assert same(task.model.state_dict(), before)


@pytest.mark.parametrize("name", ["sequential attention", "acdc", "gradual", "swaps", "random", "one shot"])
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_removed_weights_stand_still(name: str, adam: bool) -> None:
    """Between two steps of a sparse phase no removed weight moves, by decay or momentum; kept ones do."""
    run = Run.begin(METHODS[name], KEEP, adam=adam)
    last = run.hooks.setting.timeline.ends[-2] if len(run.hooks.setting.timeline.ends) > 1 else 0
    run.advance(last + 2)
    before = {key: value.clone() for key, value in run.model.inner.named_parameters()}
    run.advance(last + 8)
    for tensor, mask in run.task.structures.masks(run.model.kept).items():
        after = run.model.inner.get_parameter(tensor)
        assert torch.equal(after[~mask], before[tensor][~mask])
        assert not torch.equal(after[mask], before[tensor][mask])


def attentive(run: Run) -> Attentive:
    """The network of a run with attention."""
    assert isinstance(run.model, Attentive)
    return run.model


def test_removed_logits_stand_still() -> None:
    """The softmax's normaliser gives removed logits a gradient, which they do not follow."""
    run = Run.begin(METHODS["sequential attention"], KEEP).advance(STEPS - 6)
    model = attentive(run)
    before = [logits.detach().clone() for logits in model.logits]
    run.advance(STEPS)
    for (logits, entries), old in zip(model.slices(), before, strict=True):
        kept = run.model.mask[entries].bool()
        assert torch.equal(logits[~kept], old[~kept])
        assert not torch.equal(logits[kept], old[kept])


def returns(name: str, reset: Reset = Reset.AUTO) -> tuple[Run, np.ndarray, dict[str, torch.Tensor]]:
    """A run at its first return to dense, the mask before, and the weights before."""
    run = Run.begin(replace(METHODS[name], reset=reset), KEEP)
    timeline = run.hooks.setting.timeline
    back = next(s for s in range(1, STEPS) if timeline.at(s).first and timeline.at(s).kind is Kind.DENSE)
    run.advance(back)
    kept = run.model.kept
    weights = {name: value.detach().clone() for name, value in run.model.inner.named_parameters()}
    run.hooks.before_forward(back)
    return run, kept, weights


def test_sequential_attention_brings_weights_back_as_they_were() -> None:
    """Removed weights are not zero while they wait, and return unchanged."""
    run, kept, weights = returns("sequential attention")
    for tensor, mask in run.task.structures.masks(kept).items():
        assert weights[tensor][~mask].all()
        assert torch.equal(run.model.inner.get_parameter(tensor), weights[tensor])
    assert run.model.kept.all()


def test_acdc_brings_weights_back_as_zeros() -> None:
    """Peste et al. prune, and restore zeros."""
    run, kept, _ = returns("acdc")
    for tensor, mask in run.task.structures.masks(kept).items():
        assert not run.model.inner.get_parameter(tensor)[~mask].any()


def test_what_returns_is_new_to_the_optimiser() -> None:
    """Momentum of removed entries is zero when they return, in a run whose phases reset nothing else."""
    run, kept, _ = returns("sequential attention", Reset.NONE)
    for tensor, mask in run.task.structures.masks(kept).items():
        momentum = run.optimizer.state[run.model.inner.get_parameter(tensor)]["momentum_buffer"]
        assert not momentum[~mask].any() and momentum[mask].all()


def test_no_layer_collapses() -> None:
    """At 97 % every layer keeps something, under every method."""
    keep = Uniform(0.97, min_structures=1)
    for method in METHODS.values():
        run = Run.begin(method, keep).advance(STEPS)
        assert all(run.model.kept[group.entries].any() for group in by_layer(run.task.structures))


def test_small_layers_have_no_attention() -> None:
    """A layer that is not eligible has no logits, and its mask never moves."""
    keep = Uniform(0.7, min_structures=25)
    run = Run.begin(SequentialAttentionPP(cycles=2), keep)
    sizes = [group.size for group in run.model.groups]
    assert sizes == [27, 50] and len(attentive(run).logits) == 2
    run = Run.begin(SequentialAttentionPP(cycles=2), Uniform(0.7, min_structures=30)).advance(STEPS)
    assert len(attentive(run).logits) == 1 and run.model.kept[:27].all()


def test_attention_is_clipped_by_the_kept_fraction() -> None:
    """The limits are each layer's kept fraction and its inverse."""
    run = Run.begin(METHODS["sequential attention"], KEEP)
    assert attentive(run).least == pytest.approx([8 / 27, 15 / 50])


def test_swaps_change_the_mask_at_constant_number() -> None:
    """Between first and last mask something was exchanged, and what came in began at zero."""
    run = Run.begin(METHODS["swaps"], KEEP).advance(1)
    first = run.model.kept
    run.advance(STEPS)
    assert not np.array_equal(first, run.model.kept) and first.sum() == run.model.kept.sum()


def test_a_rejected_exchange_leaves_everything_as_before() -> None:
    """With a test that nothing passes the mask never moves, and every exchange is taken back."""
    calls = [0]

    def worse(model: torch.nn.Module) -> float:
        calls[0] += 1
        return float(calls[0])

    run = Run.begin(METHODS["tested swaps"], KEEP, probe=worse).advance(1)
    first = run.model.kept
    run.advance(STEPS)
    assert np.array_equal(first, run.model.kept)
    assert isinstance(run.hooks, SwapHarness) and run.hooks.tried >= 3
    assert run.hooks.rejected == run.hooks.tried


def test_powers_are_folded_back_into_weights() -> None:
    """The trained parameters are not the weights; the folded network has the weights."""
    run = Run.begin(METHODS["powerpropagation"], KEEP).advance(STEPS)
    assert isinstance(run.model, PowerMasked)
    plain = run.model.fold(run.task.structures)
    assert not torch.allclose(plain.get_parameter("5.weight"), run.model.inner.get_parameter("5.weight"))
