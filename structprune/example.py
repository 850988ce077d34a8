"""Find example arguments for one forward call when the caller gave none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from structprune.axes import Example, as_example
from structprune.data import batch_size, device_of, eval_mode

__all__ = ["find_example"]

IMAGE = 64  # pixels: small, and enough for five halvings


def find_example(model: nn.Module, example: Any, data: Iterable[Any] | None) -> Example:
    """The arguments given, else the first two examples of the data, else what the model itself tells.

    The model is left untouched: guesses are tried in evaluation mode, which keeps batch norm's statistics.

    A model may tell by ``dummy_inputs`` (transformers), by ``default_cfg['input_size']`` (timm), or by a first
    layer that is linear or a convolution.

    Raises
    ------
    ValueError
        If none of these gives arguments that the model runs on.
    """
    device = device_of(model)
    if example is not None:
        return _moved(as_example(example), device)
    if data is not None:
        inputs = next(iter(data))[0]
        size = batch_size(inputs)
        few = pytree.tree_map(
            lambda leaf: leaf[:2] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf, inputs
        )
        return _moved(as_example(few), device)
    for guess in _guesses(model):
        candidate = _moved(as_example(guess), device)
        try:
            with eval_mode(model), torch.no_grad():
                model(*candidate.args, **candidate.kwargs)
        except Exception:  # a guess that does not fit is no error
            continue
        return candidate
    raise ValueError(
        f"Expected an example input for {type(model).__name__}. Got none, and it cannot be told from the model. "
        "Pass example=, the arguments of one forward call, such as torch.randn(2, 3, 224, 224)."
    )


def _guesses(model: nn.Module) -> list[Any]:
    """Candidates from the most to the least certain; random inputs are drawn from a seed of their own."""
    generator = torch.Generator().manual_seed(0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    guesses: list[Any] = []
    told = getattr(model, "dummy_inputs", None)
    if told is not None:
        guesses.append(told)
    config = getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        guesses.append(noise(2, *config["input_size"]))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            guesses += [noise(2, module.in_features), noise(2, 8, module.in_features)]
        elif isinstance(module, nn.Conv1d):
            guesses.append(noise(2, module.in_channels, IMAGE))
        elif isinstance(module, nn.Conv2d):
            guesses += [noise(2, module.in_channels, size, size) for size in (IMAGE, 224, 32, 28)]
        elif isinstance(module, nn.Conv3d):
            guesses.append(noise(2, module.in_channels, 16, IMAGE, IMAGE))
        elif isinstance(module, nn.Embedding):
            guesses.append(torch.zeros(2, 8, dtype=torch.int64))
        else:
            continue
        break
    return guesses


def _moved(example: Example, device: torch.device) -> Example:
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (example.args, dict(example.kwargs))
    )
    return Example(args, kwargs)
