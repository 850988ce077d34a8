"""``structprune limit``: how far a network of the user's can be pruned."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import nn

from structprune.axes import Example
from structprune.cli.arguments import FACTORIES, add_network, added, fraction, pair, positive, reference
from structprune.cli.given import example_of, function, made, model_of
from structprune.data import check_data
from structprune.example import find_example
from structprune.files import write_atomically
from structprune.limit import Limit, pruning_limit
from structprune.limit.pruning_limit import CURVATURES, ESTIMATORS
from structprune.limit_html import page
from structprune.structures import Structures, blocks, channels, kernels, nm

__all__ = ["add_limit", "run_limit"]

KINDS = ("weights", "channels", "blocks", "kernels", "nm")
BLOCK, NM = (16, 16), (2, 4)
FILES = ("limit.html", "limit.json")

LIMIT_EXAMPLES = f"""\
{FACTORIES}
Here the data must be the same in every pass: no shuffling, no augmentation, and batches of one size for epsilon.

examples:
  single weights, and whether a tenth of them could do:
    structprune limit --model mynet:make --weights mynet.safetensors --data mynet:train --budget-keep 0.1
  channels, with the first layer left alone, a page with plots in the folder "limit":
    structprune limit --model mynet:make --weights mynet.pt --data mynet:train --structures channels \\
      --free stem --out limit
  blocks of 8 x 8 weights for a rise of the loss by at most 0.01 nats, on a large network:
    structprune limit --model mynet:make --weights mynet.pt --data mynet:train --structures blocks --block 8x8 \\
      --epsilon 0.01 --curvature layerwise
  then a solve whose report says what its budget means beside the limit:
    structprune solve --model mynet:make --weights mynet.pt --data mynet:train --budget params=0.3 \\
      --limit limit/limit.json --out small"""


def add_limit(commands: Any) -> None:
    """Add the command to the parser's."""
    command = added(commands, "limit", run_limit, "estimate how far a network of yours can be pruned", LIMIT_EXAMPLES)
    add_network(command, needs_data=True)
    command.add_argument(
        "--loss", type=reference, metavar="PACKAGE:FUNCTION", help="loss(output, target), mean nats; else inferred"
    )
    command.add_argument(
        "--structures", choices=KINDS, default="weights", help="what is removed whole; default weights, single ones"
    )
    command.add_argument("--block", type=pair("x", "16x16"), metavar="AxB", help="size of blocks; default 16x16")
    command.add_argument("--nm", type=pair(":", "2:4"), metavar="N:M", help="of every M weights N stay; default 2:4")
    command.add_argument(
        "--free", nargs="+", default=[], metavar="PATTERN", help="modules or parameters whose weights always stay"
    )
    command.add_argument(
        "--epsilon",
        type=epsilon,
        default="batch_std",
        metavar="NATS",
        help="how much the loss may rise; default batch_std, by as much as it varies between batches",
    )
    command.add_argument(
        "--curvature", choices=CURVATURES, default="auto", help="of the loss; layerwise is the cheapest; default auto"
    )
    command.add_argument(
        "--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS, help="which estimates; default all"
    )
    command.add_argument(
        "--tau",
        nargs="+",
        type=float,
        default=(0.05, 0.1),
        metavar="RADIUS",
        help="how far trust-region updates move the survivors, relative to their length; default 0.05 0.1",
    )
    command.add_argument("--probes", type=positive, default=8, metavar="N", help="random vectors; default 8")
    command.add_argument("--steps", type=positive, default=64, metavar="N", help="Lanczos steps at first; default 64")
    command.add_argument("--confidence", type=float, default=0.95, help="of the intervals; default 0.95")
    command.add_argument("--seed", type=int, default=0, help="for everything that is drawn; default 0")
    command.add_argument(
        "--budget-keep", type=fraction, metavar="FRACTION", help="say what keeping this fraction of all weights means"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="write limit.json and limit.html, with plots, there")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier limit in DIR")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")


def run_limit(arguments: argparse.Namespace) -> int:
    """Estimate the limit of a network of the user's, print it and save it."""
    folder: Path | None = arguments.out
    if folder is not None and not arguments.overwrite:
        refuse_earlier(folder)
    torch.manual_seed(arguments.seed)
    model = model_of(arguments.model, arguments.weights).eval()
    data = check_data(made(arguments.data))
    loss = None if arguments.loss is None else function(arguments.loss)
    example = None if arguments.example is None else example_of(arguments.example, model, arguments.seed)
    example = find_example(model, example, data)
    limit = pruning_limit(
        model,
        data,
        loss,
        structures=structures_of(arguments, model, example),
        free=arguments.free,
        epsilon=arguments.epsilon,
        curvature=arguments.curvature,
        estimators=tuple(arguments.estimators),
        tau=tuple(arguments.tau),
        probes=arguments.probes,
        steps=arguments.steps,
        confidence=arguments.confidence,
        seed=arguments.seed,
        example=example,
        progress=not arguments.quiet,
    )
    asked: float | None = arguments.budget_keep
    if folder is not None:
        save(limit, folder, asked)
    show(limit, asked, folder, as_json=arguments.json)
    return 0


def structures_of(arguments: argparse.Namespace, model: nn.Module, example: Example) -> Structures | None:
    """Return what is removed whole, None for single weights."""
    kind = arguments.structures
    if kind == "weights":
        return None
    if kind == "channels":
        return channels(model, example)
    if kind == "blocks":
        return blocks(model, arguments.block or BLOCK, example=example)
    return kernels(model, example=example) if kind == "kernels" else nm(model, *(arguments.nm or NM), example=example)


def show(limit: Limit, asked: float | None, folder: Path | None, *, as_json: bool) -> None:
    """Print the limit, warnings in colour; beside JSON what else there is to say goes to standard error."""
    console = Console(stderr=as_json)
    if as_json:
        print(limit.to_json(), end="")
    else:
        text = Text(str(limit))
        text.highlight_regex(r"(?m)^! .*$", "bold red")
        console.print(text, soft_wrap=True)
    said = [] if asked is None else [limit.sentence(asked)]
    if folder is not None:
        said.append(f"Saved in {folder}. The page with the plots: {(folder / 'limit.html').resolve()}")
    for sentence in said:
        console.print(Text(sentence), soft_wrap=True)


def refuse_earlier(folder: Path) -> None:
    """Raise FileExistsError if there is a limit in the folder already, or no folder."""
    for path in (folder, *(folder / name for name in FILES)):
        if path.exists() and (path != folder or not path.is_dir()):
            raise FileExistsError(
                f"Expected a folder without a limit. Got {str(path)!r}, which exists. Pass another, or --overwrite."
            )


def save(limit: Limit, folder: Path, asked: float | None) -> None:
    """Write both files, each whole or not at all; an interruption leaves no new folder behind."""
    html = page(limit, asked).encode()
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "limit.html", html)
        limit.save(folder / "limit.json")
    except BaseException:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def epsilon(text: str) -> str | float:
    """Read a number of nats, or 'batch_std'."""
    if text == "batch_std":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number of nats or batch_std, got {text!r}") from error
