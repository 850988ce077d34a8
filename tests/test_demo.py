"""The demo: its data, what it promises, and that the promises are checked and kept."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from structprune import Budget, demo, load
from structprune.cli import main
from structprune.demo import DigitsNet, facts
from structprune.report import CostRow, LatencyRow, QualityRow, Report

KEPT = Report(
    model_name="DigitsNet",
    kind="channels",
    criterion="LayerReconstruction",
    score_unit="nats",
    axes=(),
    costs=(CostRow("macs", 1000, 500, 495, 495), CostRow("params", 100, None, 40, 40)),
    objective=1.0,
    latency=LatencyRow(256, "cpu", 200, 190, 210, 100, 95, 105),
    quality=(
        QualityRow("dense", 0.1, 0.98, 450),
        QualityRow("pruned", 0.2, 0.9, 450),
        QualityRow("t", 0.1, 0.975, 450),
    ),
    max_error=1e-7,
)


def broken(report: Report) -> list[str]:
    """Return the first word of each promise that is not kept."""
    return [fact.sentence.split()[0] for fact in facts(report) if not fact.holds]


def test_all_promises_can_be_kept() -> None:
    """A run within budget, used up, as good, faster and exact keeps every promise: one per cap and three more."""
    assert broken(KEPT) == []
    assert len(facts(KEPT)) == 4


@pytest.mark.parametrize(
    ("costs", "kept"),
    [
        ((CostRow("macs", 1000, 500, 500, 500),), True),
        ((CostRow("macs", 1000, 500, 490, 490),), True),
        ((CostRow("macs", 1000, 500, 489, 489),), False),  # budget left over
        ((CostRow("macs", 1000, 500, 500, 501),), False),  # what is counted decides
        ((CostRow("macs", 1000, 500, 499, 499), CostRow("params", 100, 50, 20, 20)), True),  # one of two binds
        ((CostRow("macs", 1000, 500, 300, 300), CostRow("params", 100, 50, 20, 20)), False),
    ],
)
def test_a_budget_is_met_and_used(costs: tuple[CostRow, ...], kept: bool) -> None:
    """The counted amount must be within each cap and at least 98 % of the tightest."""
    assert all(fact.holds for fact in facts(dataclasses.replace(KEPT, costs=costs))) is kept


def test_a_point_of_accuracy_may_go() -> None:
    """From 98 % the last stage may fall to 97 % and not lower."""
    for final, lost in ((0.97, []), (0.965, ["accuracy"])):
        quality = (KEPT.quality[0], QualityRow("pruned", 0.1, final, 450))
        assert broken(dataclasses.replace(KEPT, quality=quality)) == lost


def test_a_slower_network_breaks_the_promise() -> None:
    """The median after must be below the one before."""
    assert broken(dataclasses.replace(KEPT, latency=LatencyRow(256, "cpu", 100, 99, 101, 100, 99, 101))) == ["latency"]


def test_another_function_breaks_the_promise() -> None:
    """A compiled network that differs from the masked one by a thousandth is not accepted."""
    assert broken(dataclasses.replace(KEPT, max_error=1e-3)) == ["the"]


def rows(batches: Any) -> set[tuple[float, ...]]:
    """Return the images of all batches, each as a tuple."""
    images: list[Tensor] = [inputs for inputs, _ in batches]
    return {tuple(image.flatten().tolist()) for image in torch.cat(images)}


def test_no_test_image_is_trained_on() -> None:
    """Training and test images are 1,347 and 450 of the 1,797 digits, and none is in both."""
    train, test = rows(demo.training()), rows(demo.test())
    assert (len(train), len(test)) == (1347, 450)
    assert not train & test


def test_the_split_is_fixed_and_balanced() -> None:
    """Every call gives the same batches, whatever the seed of torch is, and 42 to 47 test images of each digit."""
    first = list(demo.test())
    torch.manual_seed(12345)
    for (inputs, targets), (again, same) in zip(first, demo.test(), strict=True):
        assert torch.equal(inputs, again) and torch.equal(targets, same)
    counts = torch.bincount(torch.cat([targets for _, targets in first]))
    assert len(counts) == 10 and counts.min() >= 42 and counts.max() <= 47


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any], bool]:
    """Run the demo with a narrow network that is trained for one epoch; returns folder, text, solve's arguments."""
    seen: dict[str, Any] = {}

    def spied(model: Any, budget: Any, **options: Any) -> Any:
        seen.update(options)
        return solve(model, budget, **options)

    solve = demo.solve
    out = tmp_path_factory.mktemp("demo") / "out"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "network", functools.partial(DigitsNet, (4, 8, 8, 8)))
        patch.setattr(demo, "LEARN", {"epochs": 1, "lr": 0.1})
        patch.setattr(demo, "TUNE", {"epochs": 1, "lr": 0.01})
        patch.setattr(demo, "solve", spied)
        console = Console(file=text, width=100)
        held = demo.demo(out, seed=0, budget=Budget(macs=0.5), console=console, progress=False)
    return out, text.getvalue(), seen, held


def test_the_demo_prunes_without_the_test_images(small_run: tuple[Path, str, dict[str, Any], bool]) -> None:
    """What pruning and fine-tuning are given holds no test image; the test images only measure quality."""
    _, _, options, _ = small_run
    test = rows(demo.test())
    assert not rows(options["data"]) & test
    assert rows(options["validation"]) == test


def test_the_demo_prints_report_facts_and_next_steps(small_run: tuple[Path, str, dict[str, Any], bool]) -> None:
    """The text has the report, one line per promise, where everything is and what to type next; the answer sums up."""
    out, text, _, held = small_run
    lines = text.splitlines()
    answers = [line.split()[0] for line in lines[lines.index("Promised and checked") + 1 :][:4]]
    assert set(answers) <= {"yes", "NO"} and len(answers) == 4
    assert held is ("NO" not in answers)
    for part in ("LayerReconstruction", "gap", str(out), "report.html", "structprune solve --model"):
        assert part in text


def test_the_demo_saves_both_networks(small_run: tuple[Path, str, dict[str, Any], bool]) -> None:
    """The folder holds the pruned network, which loads and has fewer weights, the dense weights and the reports."""
    out, _, _, _ = small_run
    dense = DigitsNet((4, 8, 8, 8))
    pruned = load(out, dense)
    assert pruned(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in dense.parameters())
    names = {"dense.safetensors", "report.html", "report.json", "structure.json", "weights.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    assert not [path for path in out.parent.iterdir() if path != out]


def test_the_demo_leaves_foreign_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that no demo wrote is refused before any training."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path / "mine")]) == 1
    assert "Pass another --out" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_broken_promises_fail_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The exit code of `structprune demo` is 0 or 1 as the facts hold or not."""
    for held in (True, False):
        monkeypatch.setattr("structprune.cli.commands.demo", lambda *_, held=held, **__: held)
        assert main(["demo", "--out", str(tmp_path / "x")]) == (0 if held else 1)


def test_threads_are_put_back() -> None:
    """The demo's single thread is its own."""
    before = torch.get_num_threads()
    with demo.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_demo_keeps_its_promises(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its real network the demo keeps every promise, and the dense network is at least 97 % accurate."""
    assert main(["demo", "--seed", str(seed), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    dense = Report.from_json(tmp_path / "out" / "report.json").quality[0]
    assert dense.stage == "dense" and (dense.accuracy or 0) >= 0.97
    assert "NO" not in capsys.readouterr().out.split()
