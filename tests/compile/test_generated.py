"""Compiled equals masked, and counted equals predicted, on networks that hypothesis puts together."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from structprune.axes import as_example
from structprune.axes.graph import run
from structprune.compile import masked
from structprune.compile.proof import difference
from structprune.costs import costs, evaluate
from structprune.structures import channels
from tests.agreement import compiled_equals_masked, counted_equals_predicted, in_double
from tests.generated import Attention, images, networks, random_selection

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=12, suppress_health_check=SLOW)
@given(networks(), st.sampled_from([0.3, 0.6, 0.9]), st.integers(0, 100))
def test_random_networks_compile_to_the_masked_network(model: nn.Module, keep: float, seed: int):
    """Any network, any selection: equal to 1e-5 in float32 and to 1e-10 in float64, and as large as predicted."""
    structures = channels(model, images())
    selection = random_selection(structures, keep, seed)
    compiled = compiled_equals_masked(model, images(), structures, selection, effective=False)
    counted_equals_predicted(model, images(), structures, selection, compiled)
    double = in_double(model, images(), structures)
    compiled_equals_masked(*double, selection, effective=False)


@settings(max_examples=6, suppress_health_check=SLOW)
@given(networks(), st.integers(0, 100))
def test_torch_counts_the_same_multiplications(model: nn.Module, seed: int):
    """torch's counter agrees on the dense and the compiled network, where it counts: not in fused attention."""
    if any(isinstance(module, Attention) and not module.by_hand for module in model.modules()):
        return
    structures = channels(model, images())
    selection = random_selection(structures, 0.5, seed)
    compiled = compiled_equals_masked(model, images(), structures, selection, effective=False)
    terms = costs(structures, model, "macs")
    for network, widths in (
        (model, [axis.size for axis in structures.axes]),
        (compiled.model, structures.widths(selection)),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images())
        assert counter.get_total_flops() // 2 == evaluate(terms, widths) * len(images())


def test_random_networks_are_not_vacuous():
    """Nearly all random networks have axes, and masking half of them changes the output."""
    effects = []

    @settings(max_examples=12, suppress_health_check=SLOW, database=None)
    @given(networks())
    def collect(model: nn.Module) -> None:
        structures = channels(model, images())
        selection = random_selection(structures, 0.5, 0)
        if not selection.all():
            dense = run(model, as_example(images()))
            effects.append(difference([run(masked(model, structures, selection), as_example(images()))], [dense]))

    collect()
    assert len(effects) >= 8
    assert sum(effect > 1e-3 for effect in effects) >= 0.9 * len(effects)
