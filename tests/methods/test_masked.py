"""Networks behind masks: the dense network at the start, the masked one in between, a plain one at the end."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from structprune.methods.attention import Attentive, attention
from structprune.methods.groups import by_layer
from structprune.methods.masked import Masked
from structprune.methods.powerpropagation import PowerMasked
from structprune.structures import Structures, blocks, channels
from tests.cases import BY_NAME, CASES, Case

BLOCKED = [
    name for name in BY_NAME if name not in ("lstm", "gru", "torch_attention", "torch_encoder", "raw_parameters")
]


def run(model: nn.Module, inputs: object) -> list[torch.Tensor]:
    """The network's outputs as a list of tensors."""
    output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


@cache
def channels_of(name: str) -> Structures:
    """The case's channels; tracing takes longer than all else here."""
    return channels(*BY_NAME[name].make())


def half(structures: Structures, seed: int = 0) -> np.ndarray:
    """Half of the structures of each axis, at least one."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(structures.n, dtype=bool)
    for axis in structures.axes:
        kept[axis.start + rng.permutation(axis.size)[: max(1, axis.size // 2)]] = True
    return kept


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_starts_as_the_dense_network(case: Case) -> None:
    """At step 0 the wrapped network equals the dense one bit for bit, with channels gated and masked."""
    model, inputs = case.make()
    structures = channels_of(case.name)
    wrapped = Attentive(model, structures, [True] * len(structures.axes)).eval()
    for ours, dense in zip(run(wrapped, inputs), run(model, inputs), strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("name", BLOCKED)
def test_attention_over_blocks_starts_as_the_dense_network(name: str) -> None:
    """The same with blocks, at whose edges smaller ones lie."""
    model, inputs = BY_NAME[name].make()
    structures = blocks(model, (4, 4))
    attentive = Attentive(model, structures, [True] * len(by_layer(structures))).eval()
    for ours, dense in zip(run(attentive, inputs), run(model, inputs), strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_channels_are_those_of_the_structures(case: Case) -> None:
    """The network behind a mask computes what the network with zeros written into it does."""
    model, inputs = case.make()
    structures = channels_of(case.name)
    selection = half(structures)
    wrapped = Masked(model, structures).eval()
    wrapped.keep(selection)
    before = run(wrapped, inputs)
    structures.apply_masks(model, selection)
    for ours, masked in zip(before, run(model, inputs), strict=True):
        torch.testing.assert_close(ours, masked)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_folded_channels_compute_what_wrapped_ones_do(case: Case) -> None:
    """Attention and mask written into plain weights change nothing, to 1e-5."""
    model, inputs = case.make()
    structures = channels_of(case.name)
    wrapped = Attentive(model, structures, [True] * len(structures.axes)).eval()
    for logits in wrapped.logits:
        nn.init.normal_(logits, 0, 0.5)
    wrapped.keep(half(structures))
    plain = wrapped.fold(structures)
    assert type(plain) is type(model) and not any("logits" in name for name in plain.state_dict())
    for ours, folded in zip(run(wrapped, inputs), run(plain, inputs), strict=True):
        torch.testing.assert_close(ours, folded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("kind", ["attention", "power"])
def test_folded_blocks_compute_what_wrapped_ones_do(name: str, kind: str) -> None:
    """The same with blocks, and for powers of weights."""
    model, inputs = BY_NAME[name].make()
    structures = blocks(model, (4, 4))
    wrapped: Masked
    if kind == "power":
        wrapped = PowerMasked(model, structures, 2.0)
    else:
        wrapped = attentive = Attentive(model, structures, [True] * len(by_layer(structures)))
        for logits in attentive.logits:
            nn.init.normal_(logits, 0, 0.5)
    selection = half(structures)
    wrapped.eval().keep(selection)
    plain = wrapped.fold(structures)
    for ours, folded in zip(run(wrapped, inputs), run(plain, inputs), strict=True):
        torch.testing.assert_close(ours, folded, rtol=1e-5, atol=1e-5)
    for tensor, mask in structures.masks(selection).items():
        assert not dict(plain.named_parameters(remove_duplicate=False))[tensor][~mask].any()


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_powers_start_at_the_networks_own_scale(alpha: float) -> None:
    """||phi||^(alpha - 1) phi is W at the start, so that no layer begins at another scale."""
    model, inputs = BY_NAME["plain"].make()
    before = run(model, inputs)
    wrapped = PowerMasked(model, blocks(model, (4, 4)), alpha).eval()
    for ours, dense in zip(run(wrapped, inputs), before, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-4, atol=1e-5)


def test_a_structure_of_zeros_has_a_finite_gradient_under_powers() -> None:
    """The norm's slope at zero does not become NaN."""
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer)
    structures = blocks(model, (4, 4))
    with torch.no_grad():
        layer.weight[:4, :4] = 0
    wrapped = PowerMasked(model, structures, 2.0)
    wrapped(torch.randn(3, 8)).square().sum().backward()
    assert layer.weight.grad is not None and torch.isfinite(layer.weight.grad).all()


def test_a_gate_scales_a_channel_once() -> None:
    """Doubling a gate doubles what the channel gives to the layers that read it, however many tensors it has."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    structures = channels(model, inputs)
    wrapped = Attentive(model, structures, [True] * len(structures.axes)).eval()
    with torch.no_grad():
        wrapped.logits[0][0] = 1.0
    gate = wrapped.attention()[0]
    features = model[1](model[0](inputs)).clone()
    features *= torch.from_numpy(wrapped.attention()).float().view(1, -1, 1, 1)
    torch.testing.assert_close(wrapped(inputs), model[2](features))
    assert gate > 1.5


def test_attention_of_equal_logits_is_exactly_one() -> None:
    """n e^0 / sum e^0 has no rounding, for any n."""
    for size in (1, 3, 7, 101, 12_345):
        assert torch.equal(attention(torch.zeros(size)), torch.ones(size))


def test_attention_has_mean_one_and_stays_within_its_limits() -> None:
    """Unclipped the mean is one whatever the logits; clipped all lie in [0.1, 10]."""
    logits = 5 * torch.randn(1000)
    assert float(attention(logits).mean()) == pytest.approx(1, rel=1e-5)
    clipped = attention(logits, 0.1)
    assert float(clipped.min()) >= 0.1 - 1e-7 and float(clipped.max()) <= 10 + 1e-5


def test_dense_gradients_reach_what_is_removed() -> None:
    """With them the masked network has the same outputs, and a gradient at removed entries."""
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer)
    wrapped = Masked(model, blocks(model, (4, 4)))
    wrapped.keep(np.array([True, False, False, True]))
    inputs = torch.randn(5, 8)
    masked = wrapped(inputs)
    masked.square().sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad[:4, 4:].any()
    model.zero_grad()
    wrapped.dense_gradients = True
    assert torch.equal(wrapped(inputs), masked)
    wrapped(inputs).square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad[:4, 4:].any()


def test_nothing_to_choose_from_is_refused() -> None:
    """A network whose weights are in no layer has no blocks."""
    model, _ = BY_NAME["raw_parameters"].make()
    with pytest.raises(ValueError, match="Expected structures of RawParameters to choose from. Got none"):
        Masked(model, blocks(model, (4, 4)))
