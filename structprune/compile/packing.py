"""Dense linear layers in oneDNN's packed form, where a measurement says that it pays."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from structprune.axes import Example, as_example
from structprune.compile.sparse import not_worth_timing, recorded_inputs, replaced
from structprune.layers.onednn import missing
from structprune.layers.packed_linear import PackedLinear
from structprune.layers.tune import time_packed

__all__ = ["PackingPlan", "pack_linear", "packed", "packed_layers", "plan_packing"]


@dataclass(frozen=True)
class PackingPlan:
    """Which linear layers are multiplied in packed form.

    Attributes
    ----------
    names
        Of the layers that win.
    ratios
        Time of the packed product as a share of ``F.linear``'s, by name, of all layers that were timed.
    reason
        Why nothing was timed, '' where something was or could have been.
    """

    names: tuple[str, ...]
    ratios: dict[str, float]
    reason: str = ""

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the result must know, one text per kind of fact."""
        texts = [f"no linear layer is packed: {self.reason}"] if self.reason else []
        won = ", ".join(f"{name} {self.ratios[name]:.2f}" for name in self.names)
        lost = ", ".join(f"{name} {ratio:.2f}" for name, ratio in self.ratios.items() if name not in self.names)
        if won:
            texts.append(f"dense and packed for oneDNN, with their time as a share of F.linear's: {won}")
        if lost:
            texts.append(f"dense and left to F.linear, since packed they took this share of its time: {lost}")
        return tuple(texts)


def packed(
    model: nn.Module, example: Any, *, cache: str | Path | Literal[False] | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of a network whose linear layers use oneDNN's packed product where it is faster on this CPU.

    For inference on the CPU in float32 or bfloat16. Parameters and their names stay; calls with gradients, under
    autocast or ``torch.compile`` compute as before. A layer is replaced only where it took less than 95 % of the time
    of ``F.linear``, in both halves of an interleaved measurement on the inputs of ``example``.

    Parameters
    ----------
    model
        Any network; it is left untouched.
    example
        A tensor, a tuple of positional or a dict of keyword arguments of the forward call that is to be fast.
    cache
        Folder of measurements; None for the user's cache folder, False for no cache.

    Returns
    -------
    The network in evaluation mode, and notes on what was measured.
    """
    clone = copy.deepcopy(model).eval()
    plan = plan_packing(clone, as_example(example), cache=cache)
    return pack_linear(clone, plan.names), plan.notes()


def plan_packing(
    model: nn.Module,
    timing: Example,
    *,
    leave: Iterable[str] = (),
    cache: str | Path | Literal[False] | None = None,
) -> PackingPlan:
    """Time every linear layer of a network in both forms; those named in ``leave`` are left out.

    Layers of the user's own classes, with hooks, or too small to gain are left out as well.
    """
    reason = missing()
    if reason:
        return PackingPlan((), {}, reason)
    left = set(leave)
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name not in left and plain(module)
    ]
    ratios, won = {}, []
    inputs = recorded_inputs(model, names, timing)
    for name in names:
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        if not_worth_timing(module, inputs[name]) or any(call.device.type != "cpu" for call in inputs[name]):
            continue
        ratio, wins = time_packed(module, inputs[name], cache=cache)
        if ratio < float("inf"):
            ratios[name] = ratio
            won += [name] if wins else []
    return PackingPlan(tuple(won), ratios)


def plain(module: nn.Linear) -> bool:
    """Whether the layer is what its class says: no hooks, no weight that is computed."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module.weight) is nn.Parameter and not any(hooks)


def pack_linear(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Replace linear layers by packed ones with the same parameters, in place, under all their names.

    Raises
    ------
    ValueError
        There is no linear layer of such a name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"Expected a linear layer {name!r}. Got {type(module).__name__}. "
                "Make the model as it was made for solve."
            )
        layer = PackedLinear.from_linear(module)
        for other in [each for each, found in modules.items() if found is module]:
            model = replaced(model, other, layer)
    return model


def packed_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the packed layers of a network."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, PackedLinear))
