"""The commands, their arguments and their exit codes."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from structprune.arrange import arrange
from structprune.budget import Budget
from structprune.cli.arguments import (
    FACTORIES,
    Formatter,
    add_network,
    add_wishes,
    added,
    budget,
    pair,
    reference,
    whole,
)
from structprune.cli.given import example_of, function, limit_of, made, model_of
from structprune.cli.inspection import inspect
from structprune.cli.limit import add_limit
from structprune.criteria import BNScale, Criterion, Fisher, LayerReconstruction, Magnitude, Random, Taylor
from structprune.data import check_data
from structprune.demo import demo
from structprune.example import find_example
from structprune.finetune import FineTune
from structprune.io import check_free
from structprune.progress import Phases
from structprune.report import Report
from structprune.solve import solve
from structprune.structures import Structures, blocks, channels

__all__ = ["main"]

FAILED, INTERRUPTED = 1, 130  # argparse exits with 2 for a command that it cannot read
CRITERIA = ("magnitude", "taylor", "fisher", "bn-scale", "random", "reconstruction")

ABOUT = """\
Keeps the most valuable structures of a network that fit a budget, proves how good the choice is, and builds the
smaller, faster network."""

EXAMPLES = """\
examples:
  structprune demo
  structprune inspect --model torchvision.models:resnet18 --example 2x3x224x224
  structprune solve --model mynet:make --weights mynet.safetensors --data mynet:batches --budget macs=0.5 --out small
  structprune limit --model mynet:make --weights mynet.safetensors --data mynet:batches --budget-keep 0.1
  structprune report small

exit codes: 0 done, 1 failed (the message is on standard error), 2 not understood, 130 interrupted"""

DEMO_EXAMPLES = """\
examples:
  structprune demo
  structprune demo --budget macs=0.4,params=0.5 --seed 1 --out /tmp/digits"""

SOLVE_EXAMPLES = f"""\
{FACTORIES}

examples:
  without data, by the size of the weights:
    structprune solve --model mynet:make --weights mynet.pt --budget macs=0.5 --out small
  with data, then two epochs of training, measured on other data:
    structprune solve --model mynet:make --weights mynet.safetensors --data mynet:train --validation mynet:test \\
      --budget macs=0.5,params=300k --finetune 2 --lr 0.01 --out small
  latency and the stem left alone, widths in multiples of eight:
    structprune solve --model mynet:make --data mynet:train --budget latency_ns=2ms \\
      --keep-whole stem 'layer1.*' --multiple-of 8 --out small
  blocks of 64 outputs and one input in place of channels, after outputs that want the same inputs were put together:
    structprune solve --model mynet:make --data mynet:train --budget density=0.25 \\
      --blocks 64x1 --arrange --layers 'encoder.*' --out small"""

INSPECT_EXAMPLES = f"""\
{FACTORIES}

examples:
  structprune inspect --model mynet:make --example 2x3x32x32
  structprune inspect --model mynet:make --weights mynet.safetensors --data mynet:batches --json"""

REPORT_EXAMPLES = """\
examples:
  structprune report small
  structprune report small/report.json --html page.html"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Errors are one message on standard error, with the traceback if ``--debug`` asks for it. An interruption leaves
    nothing half written.
    """
    top = parser()
    arguments = top.parse_args(argv)
    complaint = at_odds(arguments)
    if complaint is not None:
        top.error(complaint)
    try:
        done: int = arguments.command(arguments)
        return done
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # the last place that can turn any failure into a message
        if arguments.debug:
            traceback.print_exc()
        else:
            print(f"error: {message(error)}", file=sys.stderr)
        return FAILED


def message(error: Exception) -> str:
    """Return what went wrong; errors that say nothing of themselves get their name and where to look."""
    told = str(error).strip()
    if isinstance(error, ValueError | TypeError | OSError) and told:
        return told
    return f"{type(error).__name__}: {told or 'no message'}. Add --debug to see where."


# ---------------------------------------------------------------- commands


def run_demo(arguments: argparse.Namespace) -> int:
    """Train, prune and check the digits network; fails if what is promised does not come true."""
    console = Console()
    held = demo(
        arguments.out,
        seed=arguments.seed,
        budget=arguments.budget,
        console=console,
        progress=not arguments.quiet,
    )
    return 0 if held else FAILED


def run_solve(arguments: argparse.Namespace) -> int:
    """Prune a network of the user and save it."""
    check_free(arguments.out, overwrite=arguments.overwrite)
    limit = None if arguments.limit is None else limit_of(arguments.limit)
    torch.manual_seed(arguments.seed)
    model = model_of(arguments.model, arguments.weights)
    data = None if arguments.data is None else check_data(made(arguments.data))
    validation = None if arguments.validation is None else check_data(made(arguments.validation))
    loss = None if arguments.loss is None else function(arguments.loss)
    example = None if arguments.example is None else example_of(arguments.example, model, arguments.seed)
    example = find_example(model, example, data)
    tune = None
    if arguments.finetune is not None:
        rate = {} if arguments.lr is None else {"lr": arguments.lr}
        tune = FineTune(epochs=arguments.finetune, seed=arguments.seed, **rate)
    structures = None
    if arguments.blocks is not None:
        model, structures = blocked(model, example, arguments)
    elif arguments.keep_whole or arguments.multiple_of > 1:
        structures = traced(model, example, arguments)
    pruned = solve(
        model,
        arguments.budget,
        structures=structures,
        data=data,
        loss=loss,
        example=example,
        criterion=None if arguments.criterion is None else criterion(arguments.criterion, arguments.seed),
        finetune=tune,
        validation=validation,
        limit=limit,
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    pruned.save(arguments.out, overwrite=arguments.overwrite)
    if not arguments.quiet:
        console = Console()
        pruned.report.print(console)
        text = f"Saved in {arguments.out}. The page with the plots: {(arguments.out / 'report.html').resolve()}"
        console.print(text, highlight=False, soft_wrap=True)
    return 0


def run_inspect(arguments: argparse.Namespace) -> int:
    """Show what could be removed from a network."""
    torch.manual_seed(0)
    model = model_of(arguments.model, arguments.weights)
    data = None if arguments.data is None else check_data(made(arguments.data))
    example = None if arguments.example is None else example_of(arguments.example, model, 0)
    found = inspect(model, traced(model, find_example(model, example, data), arguments))
    if arguments.json:
        print(found.to_json())
    else:
        found.print(Console())
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Show a report that was saved."""
    path: Path = arguments.path
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"Expected a folder or a report.json that structprune saved. Got {str(path)!r}. Check the path."
        )
    report = Report.from_json(file)
    if arguments.html is not None:
        report.to_html(arguments.html)
    report.print(Console())
    return 0


def traced(model: torch.nn.Module, example: Any, arguments: argparse.Namespace) -> Structures:
    """Return the channels of the network under the command's wishes."""
    with Phases(not arguments.quiet).phase("tracing"):
        return channels(model, example, keep_whole=arguments.keep_whole, multiple_of=arguments.multiple_of)


def blocked(model: torch.nn.Module, example: Any, arguments: argparse.Namespace) -> tuple[torch.nn.Module, Structures]:
    """Return the network, reordered if that is wished, and its blocks."""
    shape, given = arguments.blocks, {"example": example, "keep_whole": arguments.keep_whole}
    structures = blocks(model, shape, layers=arguments.layers, **given)
    if not arguments.arrange:
        return model, structures
    names = dict.fromkeys(tensor.removesuffix("weight").removesuffix(".") for tensor in tensors_of(structures))
    arranged = arrange(
        *(model, shape, arguments.budget.density),
        example=example,
        layers=[model.get_submodule(name) for name in names],
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    if not arguments.quiet:
        Console().print(str(arranged), highlight=False, soft_wrap=True)
    return arranged.model, blocks(arranged.model, shape, layers=arguments.layers, orders=arranged.orders, **given)


def tensors_of(structures: Structures) -> list[str]:
    """Return the names of the tensors that can lose something."""
    return [tensor for axis in structures.axes for tensor in axis.tensors()]


def criterion(name: str, seed: int) -> Criterion:
    """Return the criterion of a name, as it is without further options."""
    found: dict[str, Criterion] = {
        "magnitude": Magnitude(),
        "taylor": Taylor(),
        "fisher": Fisher(),
        "bn-scale": BNScale(),
        "random": Random(seed=seed),
        "reconstruction": LayerReconstruction(seed=seed),
    }
    return found[name]


# ---------------------------------------------------------------- arguments


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser("structprune", description=ABOUT, epilog=EXAMPLES, formatter_class=Formatter)
    top.add_argument("--version", action="version", version=f"structprune {version()}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = added(commands, "demo", run_demo, "prune a small network on scikit-learn's digits", DEMO_EXAMPLES)
    command.add_argument("--out", type=Path, default=Path("structprune-demo"), metavar="DIR", help="where to save")
    command.add_argument("--budget", type=budget, default=Budget(macs=0.5), help="what may be kept; default macs=0.5")
    command.add_argument("--seed", type=int, default=0, help="for training and pruning; default 0")

    command = added(commands, "solve", run_solve, "prune a network of yours to a budget and save it", SOLVE_EXAMPLES)
    add_network(command)
    add_wishes(command)
    command.add_argument(
        "--budget",
        type=budget,
        required=True,
        help="caps on macs, params, bytes, latency_ns, with commas between them: 0.5 or 50%% is a fraction of the "
        "dense network, a whole number an amount, as in params=300k or latency_ns=2ms",
    )
    command.add_argument(
        "--blocks", type=pair("x", "64x1"), metavar="AxB", help="cut blocks of A outputs and B inputs, not channels"
    )
    command.add_argument("--layers", nargs="+", metavar="PATTERN", help="modules that --blocks cuts; default all")
    command.add_argument(
        "--arrange",
        action="store_true",
        help="reorder outputs first, so that --blocks keeps more at the density of --budget",
    )
    command.add_argument("--validation", type=reference, metavar="PACKAGE:FACTORY", help="data to measure quality on")
    command.add_argument(
        "--loss", type=reference, metavar="PACKAGE:FUNCTION", help="loss(output, target), mean nats; else inferred"
    )
    command.add_argument(
        "--criterion", choices=CRITERIA, help="what scores structures; default reconstruction with data, else magnitude"
    )
    command.add_argument("--finetune", type=whole, metavar="EPOCHS", help="train the pruned network on the data")
    command.add_argument("--lr", type=float, help="peak learning rate of --finetune; default 0.01")
    command.add_argument(
        "--limit", type=Path, metavar="FILE", help="limit.json of this network, for the report to judge"
    )
    command.add_argument("--seed", type=int, default=0, help="for everything that is drawn; default 0")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder for the result")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier result in DIR")

    command = added(commands, "inspect", run_inspect, "show what can be removed from a network", INSPECT_EXAMPLES)
    add_network(command)
    add_wishes(command)
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")

    add_limit(commands)

    command = added(commands, "report", run_report, "print a report that was saved", REPORT_EXAMPLES)
    command.add_argument("path", type=Path, metavar="DIR|report.json", help="what solve or demo wrote")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the page with the plots there too")
    return top


def at_odds(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the arguments together, None if nothing is."""
    given = vars(arguments)
    if given.get("lr") is not None and given["finetune"] is None:
        return "argument --lr: it is the learning rate of --finetune, which is missing"
    if given.get("finetune") is not None and given["data"] is None:
        return "argument --finetune: it needs --data to train on"
    for option in ("layers", "arrange"):
        if given.get(option) and given["blocks"] is None:
            return f"argument --{option}: it belongs to --blocks, which is missing"
    if given.get("blocks") is not None and given["multiple_of"] > 1:
        return "argument --multiple-of: it is about channels, and --blocks are cut"
    if given.get("arrange") and not isinstance(given["budget"].density, float):
        return "argument --arrange: it needs a density as a fraction, as in --budget density=0.25"
    for option, kind in (("block", "blocks"), ("nm", "nm")):
        if given.get(option) is not None and given["structures"] != kind:
            return f"argument --{option}: it belongs to --structures {kind}, which is missing"
    return None


def version() -> str:
    """Return the installed version."""
    try:
        return metadata.version("structprune")
    except metadata.PackageNotFoundError:
        return "(not installed)"
