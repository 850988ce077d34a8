"""One network cut to a latency budget on the device that it runs on: ``python -m benchmarks.gpu_latency --out FILE``.

The digits network of the demo, so wide that its convolutions and not their launches take the time. Latency is budgeted
by tables that are measured on the device, and the result is timed there: predicted beside measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.provenance import commit, versions
from structprune import demo
from structprune.budget import Budget
from structprune.files import write_atomically
from structprune.finetune import FineTune
from structprune.solve import solve

WIDTHS = (256, 512, 512, 512)
CODE = ("structprune", "solvers", "benchmarks/gpu_latency.py")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu_latency", description=__doc__)
    made.add_argument("--device", default="cuda")
    made.add_argument("--widths", nargs=4, type=int, default=WIDTHS, metavar="N", help="channels of the convolutions")
    made.add_argument("--keep", type=float, default=0.6, metavar="F", help="fraction of the latency (default: 0.6)")
    made.add_argument("--epochs", type=int, default=8, metavar="N")
    made.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, prune and write the report; returns 2 without the device, 1 if the measured latency exceeds the budget."""
    options = parser().parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"Expected a CUDA device for --device {options.device}. torch sees none. Run this where one is.")
        return 2
    torch.manual_seed(0)
    dense = demo.DigitsNet(tuple(options.widths)).to(options.device)
    learn = FineTune(epochs=options.epochs, lr=0.05, batch_size=64, seed=0)
    model = learn.run(dense, demo.training(), F.cross_entropy).model
    budget = Budget(latency_ns=options.keep)
    data, held_out = demo.training(), demo.test()
    pruned = solve(model, budget, data=data, loss=F.cross_entropy, validation=held_out, seed=0)
    report = pruned.report
    report.print()
    row = next(row for row in report.costs if row.resource == "latency_ns")
    assert row.allowed is not None and report.latency is not None
    content = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.gpu_latency", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(CODE),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device,
        "versions": versions(("torch", "numpy", "scipy", "ortools")),
        "allowed_ns": row.allowed,
        "predicted_ns": row.predicted,
        "before_ns": report.latency.before_ns,
        "after_ns": report.latency.after_ns,
        "accuracy": {one.stage: one.accuracy for one in report.quality},
        "report": json.loads(report.to_json()),
    }
    write_atomically(options.out, (json.dumps(content, indent=1) + "\n").encode())
    return 0 if report.latency.after_ns <= row.allowed else 1


if __name__ == "__main__":
    sys.exit(main())
