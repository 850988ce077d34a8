"""Arguments that the commands share, and how their texts are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structprune.budget import Budget
from structprune.cli.given import is_reference, is_shape

__all__ = [
    "FACTORIES",
    "Formatter",
    "add_network",
    "add_wishes",
    "added",
    "budget",
    "example",
    "fraction",
    "pair",
    "positive",
    "reference",
    "whole",
]

FACTORIES = """\
package:factory names a function without arguments in a module that can be imported; the current folder counts.
A model factory returns a torch.nn.Module, a data factory batches of (inputs, targets) that can be iterated over
again and again, such as a list or a DataLoader, an example factory the arguments of one forward call."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


def added(commands: Any, name: str, run: Any, about: str, examples: str) -> argparse.ArgumentParser:
    """Add a command with what all commands have."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".", epilog=examples, formatter_class=Formatter
    )
    command.set_defaults(command=run)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    quiet = "print nothing" if name == "solve" else "show no progress"
    command.add_argument("--quiet", action="store_true", help=quiet)
    return command


def add_network(command: argparse.ArgumentParser, *, needs_data: bool = False) -> None:
    """Add the arguments that say what network it is."""
    command.add_argument(
        "--model", type=reference, required=True, metavar="PACKAGE:FACTORY", help="makes the dense network"
    )
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="its weights: .safetensors, or a state dict of torch.save"
    )
    command.add_argument(
        "--data",
        type=reference,
        required=needs_data,
        metavar="PACKAGE:FACTORY",
        help="training data, batches of (inputs, targets)",
    )
    command.add_argument(
        "--example",
        type=example,
        metavar="SHAPE|PACKAGE:FACTORY",
        help="input of one forward call, such as 2x3x32x32; else the first of the data, or guessed from the model",
    )


def add_wishes(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say what may be cut."""
    command.add_argument(
        "--keep-whole", nargs="+", default=[], metavar="PATTERN", help="modules or parameters to leave alone"
    )
    command.add_argument("--multiple-of", type=positive, default=1, metavar="N", help="widths are multiples of N")


def reference(text: str) -> str:
    """Check ``package:factory``."""
    if not is_reference(text):
        raise argparse.ArgumentTypeError(f"expected package.module:function, got {text!r}")
    return text


def example(text: str) -> str:
    """Check a shape or ``package:factory``."""
    if not is_shape(text) and not is_reference(text):
        raise argparse.ArgumentTypeError(f"expected a shape such as 2x3x32x32 or package.module:function, got {text!r}")
    return text


def budget(text: str) -> Budget:
    """Read caps."""
    try:
        return Budget.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if whole(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Read a fraction above 0 and up to 1: ``0.08`` or ``8%``."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a fraction such as 0.08 or 8%, got {text!r}") from error
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction above 0 and up to 1 such as 0.08 or 8%, got {text!r}")
    return value


def pair(mark: str, like: str) -> Callable[[str], tuple[int, int]]:
    """Return a reader of two whole numbers above 0 with a mark between them, such as ``16x16`` or ``2:4``."""

    def read(text: str) -> tuple[int, int]:
        first, _, second = text.partition(mark)
        if not all(part.isdecimal() and int(part) for part in (first, second)):
            raise argparse.ArgumentTypeError(f"expected two numbers such as {like}, got {text!r}")
        return int(first), int(second)

    return read
