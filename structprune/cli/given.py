"""What the command line names: factories in the user's modules, files of weights, shapes of example inputs."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from structprune.errors import FileFormatError
from structprune.limit import Limit
from structprune.tensors import named_tensors

__all__ = ["example_of", "is_reference", "is_shape", "limit_of", "load_weights", "made", "model_of", "named"]

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*)*")
NESTED = ("state_dict", "model")  # where training scripts put the weights inside a checkpoint


def is_reference(text: str) -> bool:
    """Tell whether the text names something in a module, as in ``package.module:factory``."""
    return REFERENCE.fullmatch(text) is not None


def is_shape(text: str) -> bool:
    """Tell whether the text is a shape, as in ``2x3x32x32``."""
    return SHAPE.fullmatch(text) is not None


def named(reference: str) -> Any:
    """Return what ``package.module:attribute`` names; modules in the current folder are found too.

    Raises
    ------
    ValueError
        If the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise ValueError(
            f"Expected a module that can be imported for {reference!r}. Got {_words(error)}. "
            f"Check the name, and run this where the module is installed or in the folder that holds it."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"Expected {part!r} in {module_name} for {reference!r}. Got a {type(found).__name__} without it. "
                "Check the name after the colon."
            )
        found = getattr(found, part)
    return found


def made(reference: str) -> Any:
    """Return what the named factory returns when it is called without arguments.

    Raises
    ------
    ValueError
        If it is no function, or fails.
    """
    factory = named(reference)
    if not callable(factory):
        raise ValueError(
            f"Expected {reference!r} to be a function without arguments. Got a {type(factory).__name__}. "
            "Name a function that makes it."
        )
    try:
        return factory()
    except Exception as error:  # whatever the user's function raises
        raise ValueError(
            f"Expected {reference}() to return. Got {_words(error)}. "
            "It must work without arguments; add --debug to see where it fails."
        ) from error


def function(reference: str) -> Callable[..., Any]:
    """Return the named function itself."""
    found = named(reference)
    if not callable(found):
        raise ValueError(f"Expected {reference!r} to be a function. Got a {type(found).__name__}. Name a function.")
    return found


def model_of(reference: str, weights: Path | None) -> nn.Module:
    """Return the named network, with the weights of a file if there is one.

    Raises
    ------
    ValueError
        If the factory makes something else, or the weights do not fit.
    """
    model = made(reference)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"Expected {reference}() to return a torch.nn.Module. Got a {type(model).__name__}. Return the network."
        )
    if weights is not None:
        load_weights(model, weights)
    return model


def example_of(text: str, model: nn.Module, seed: int) -> Any:
    """Return the example that the text asks for: noise of a shape, or what a factory makes."""
    if not is_shape(text):
        return made(text)
    shape = [int(size) for size in text.split("x")]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def limit_of(path: Path) -> Limit:
    """Return the pruning limit that a file or a folder of ``structprune limit`` holds."""
    file = path / "limit.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"Expected a limit.json. Got {str(path)!r}, which has none. Check the path.")
    return Limit.from_json(file)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` file, or a state dict written by ``torch.save``, into the network.

    Nothing in the file is executed: pickled objects other than tensors are refused.

    Raises
    ------
    FileFormatError
        If the file is truncated or holds something else.
    ValueError
        If the weights are of another network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected a file of weights. Got {str(path)!r}, which is none. Check the path.")
    state = _state(path)
    tensors = {**named_tensors(model), **dict(model.state_dict(keep_vars=True))}
    given = {id(tensors[name]) for name in state if name in tensors}
    # A tied weight is there under one of its names, and files that only serve inference leave out this count.
    missing = [
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in state and id(tensor) not in given and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state if name not in tensors]
    wrong = [name for name in state if name in tensors and tensors[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has besides", unexpected), ("has in other shapes", wrong)):
        if names:
            raise ValueError(
                f"Expected weights of this {type(model).__name__} in {str(path)!r}. Got a file that {problem} "
                f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}. Name the file that belongs to the network."
            )
    model.load_state_dict(state, strict=False)


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FileFormatError(
            f"Expected weights in {str(path)!r}: safetensors, or a state dict of torch.save. Got {_words(error)}. "
            "Save model.state_dict() again."
        ) from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileFormatError(
            f"Expected a state dict in {str(path)!r}. Got a {type(content).__name__} of other things. "
            "Save model.state_dict()."
        )
    return dict(content)


def _words(error: Exception) -> str:
    """The error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
