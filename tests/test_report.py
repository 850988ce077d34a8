"""The report: what it says, that it survives being saved, and that its page needs nothing from outside."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from structprune.errors import FileFormatError
from structprune.report import AxisRow, CostRow, CurveRow, LatencyRow, QualityRow, Report
from structprune.report_html import CURVES, WIDTH_BARS
from structprune.versions import installed_versions

LATENCY = LatencyRow(256, "cpu", 4_120_000, 4_000_000, 4_200_000, 2_060_000, 2_000_000, 2_100_000)


def small_report(**changes: Any) -> Report:
    """Return a report with everything in it."""
    report = Report(
        model_name="Digits",
        kind="channels",
        criterion="LayerReconstruction()",
        score_unit="nats",
        axes=(AxisRow("conv1", 32, 8), AxisRow("conv2", 64, 48), AxisRow("fc", 10, 10)),
        costs=(CostRow("macs", 4_000_000, 2_000_000, 1_999_000, 1_999_000), CostRow("params", 30_000, None, 14_000)),
        objective=3.5,
        bound=3.6,
        gap=0.05,
        predicted_loss=0.25,
        termination_text="The gap tolerance was reached.",
        latency=LATENCY,
        quality=(QualityRow("dense", 0.1, 0.98, 500), QualityRow("pruned", 0.2, 0.95, 500)),
        per_class_recall={"dense": {"0": 1.0, "1": 0.96}, "pruned": {"0": 1.0, "1": 0.9}},
        curves=(CurveRow("conv1", (0, 8, 32), (1.5, 0.25, 0.0), 8),),
        max_error=3e-7,
        limit_sentence="your budget keeps 47 % of the weights: expect loss",
        notes=("BatchNorm was recalibrated.",),
        pinned=(("fc.weight", 0, "an output"), ("norm.weight", 0, "LayerNorm"), ("norm.bias", 0, "LayerNorm")),
        seed=7,
        seconds={"trace": 0.5, "solve": 1.5},
        versions={"torch": "2.13.0"},
    )
    return dataclasses.replace(report, **changes)


def large_report(axes: int) -> Report:
    """Return a report of a long network."""
    rows = tuple(AxisRow(f"blocks.{index}.mlp", 512, 512 - 3 * index) for index in range(axes))
    curves = tuple(CurveRow(row.name, (0, 512), (1.0, 0.0), row.after) for row in rows)
    return small_report(axes=rows, curves=curves)


def bare_report() -> Report:
    """Return a report with nothing that can be left out."""
    return Report(
        model_name="m", kind="blocks", criterion="c", score_unit="", axes=(), costs=(), objective=0.0, versions={}
    )


def line(report: Report, label: str) -> str:
    """Return the line of the text that has this label."""
    (found,) = (text for text in str(report).splitlines() if text.startswith(f"{label} "))
    return found


# ---------------------------------------------------------------- text


def test_the_text_is_about_a_dozen_lines() -> None:
    """Also for a network of a hundred axes."""
    for report in (small_report(), large_report(100)):
        assert 10 <= len(str(report).splitlines()) <= 20
        assert max(map(len, str(report).splitlines())) <= 130


def test_the_labels_are_aligned() -> None:
    """All sentences begin in one column."""
    starts = {re.match(r"\S*\s+", text).end() for text in str(small_report()).splitlines()}  # type: ignore[union-attr]
    assert len(starts) == 1


def test_widths_say_what_was_kept_where() -> None:
    """The most pruned axis comes first, and untouched ones are counted."""
    kept = line(small_report(), "kept")
    assert "66 of 106 channels on 3 axes, 1 of them untouched: conv1 32 -> 8, conv2 64 -> 48" in kept


def test_widths_of_a_long_network_are_summarised() -> None:
    """The few most pruned are named, the others counted."""
    text = str(large_report(40))
    assert "blocks.39.mlp 512 -> 395" in text
    assert "blocks.20.mlp" not in text
    assert "1 of them untouched" in text


def test_costs_say_how_much_of_the_budget_is_used() -> None:
    """Before, after, the fraction left, used of allowed, and whether the count agrees."""
    report = small_report()
    assert line(report, "macs").split(maxsplit=1)[1] == (
        "4.00 MMAC -> 2.00 MMAC (50.0 %), 99.95 % of the allowed 2.00 MMAC, counted as predicted"
    )
    assert line(report, "params").split(maxsplit=1)[1] == "30.0 k -> 14.0 k (46.7 %)"


def test_a_count_that_differs_from_the_prediction_is_told() -> None:
    """Both numbers are shown in full, because they may differ by one."""
    report = small_report(costs=(CostRow("macs", 4_000_000, 2_000_000, 1_999_000, 1_999_001),))
    assert "counted 1,999,001 and not the predicted 1,999,000" in dict(report.facts())["macs"]


def test_bound_and_gap_are_told_or_their_absence() -> None:
    """Without a bound there is none, and nothing that looks like one."""
    assert "3.5 nats kept, at most 3.6 possible: gap 5.00 %" in line(small_report(), "value")
    assert "no bound is known" in line(small_report(bound=None, gap=None), "value")


def test_latency_has_its_spread_and_ratio() -> None:
    """Medians, quartiles, and how many times as fast."""
    text = str(small_report())
    assert "4.12 ms [4.00 ms, 4.20 ms] -> 2.06 ms [2.00 ms, 2.10 ms], 2.00x faster (batch 256, cpu" in text


def test_latencies_that_cannot_be_told_apart_are_not_called_faster() -> None:
    """Where the quartiles overlap, the ratio is within the spread; a slower network is called slower."""
    assert LatencyRow(1, "cpu", 100, 90, 110, 95, 85, 105).verdict == "1.05x (within the spread)"
    assert LatencyRow(1, "cpu", 100, 99, 101, 200, 199, 201).verdict == "2.00x slower"


def test_quality_shows_each_stage() -> None:
    """Accuracy where there is one, else the loss."""
    assert "dense 98.00 % (loss 0.100) -> pruned 95.00 % (loss 0.200) (500 examples)" in line(small_report(), "quality")
    losses = small_report(quality=(QualityRow("dense", 0.5, None, 9), QualityRow("pruned", None, None, 9)))
    assert "dense loss 0.500 -> pruned not measured (9 examples)" in line(losses, "quality")


def test_the_proof_of_the_compiled_network_is_told() -> None:
    """How far it is from the masked one, and what it was compiled to."""
    assert "compiled == masked to 3e-07 (the same module, smaller)" in line(small_report(), "checked")
    assert "no faster" in line(small_report(compiled_as="masked"), "checked")


def test_a_bare_report_prints() -> None:
    """Nothing that may be missing is needed."""
    assert "no bound is known" in str(bare_report())
    bare_report().print(Console(file=io.StringIO()))


def test_a_way_of_compiling_that_does_not_exist_is_refused() -> None:
    """The ways that there are are named."""
    with pytest.raises(ValueError, match="module, graph, block-sparse, masked"):
        small_report(compiled_as="magic")


def test_curves_have_a_loss_per_level() -> None:
    """Arrays of numpy are taken; lengths must agree."""
    curve = CurveRow("a", np.arange(3), np.zeros(3), 1)  # type: ignore[arg-type]
    assert (curve.levels, curve.loss) == ((0, 1, 2), (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="one loss per level of a"):
        CurveRow("a", (0, 1), (0.0,), 1)


# ---------------------------------------------------------------- console


@pytest.mark.parametrize("report", [small_report(), large_report(100)])
def test_the_console_shows_tables_and_facts(report: Report) -> None:
    """Costs, widths and quality in tables, the rest below; nothing is said twice."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    report.print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for word in ("Cost", "Widths", "Quality", "99.95 %", "gap 5.00 %", "2.00x faster", "recalibrated", "95.00 %"):
        assert text.count(word) == 1


def test_the_console_has_colours() -> None:
    """On a terminal that has them."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    small_report().print(console)
    assert "\x1b[" in console.file.getvalue()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize("report", [small_report(), large_report(30), bare_report(), small_report(latency=None)])
def test_json_gives_the_report_back(report: Report, tmp_path: Path) -> None:
    """From the text and from the file."""
    path = tmp_path / "report.json"
    assert Report.from_json(report.to_json(path)) == report
    assert Report.from_json(path) == report
    assert Report.from_json(str(path)) == report


def test_numbers_that_json_lacks_survive() -> None:
    """An infinite loss is infinite after reading, and the file is still strict JSON."""
    curve = CurveRow("conv1", (0, 8), (math.inf, 0.0), 8)
    text = small_report(curves=(curve,), quality=(QualityRow("dense", math.nan, None, 1),)).to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    report = Report.from_json(text)
    assert report.curves == (curve,)
    assert math.isnan(report.quality[0].loss or 0.0)


def test_numbers_of_numpy_are_saved_as_numbers() -> None:
    """Counts that come out of arrays need no conversion by the caller."""
    report = small_report(axes=(AxisRow("conv1", np.int64(32), np.int64(8)),), objective=np.float64(3.5))  # type: ignore[arg-type]
    assert Report.from_json(report.to_json()) == report


def test_classes_named_by_numbers_become_text() -> None:
    """JSON's keys are text, so the report's are before it is saved."""
    assert small_report(per_class_recall={"dense": {0: 1.0}}).per_class_recall == {"dense": {"0": 1.0}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (small_report().to_json()[:200], "broken JSON"),
        ('{"format": "other"}', "Got something else"),
        ("[1, 2]", "Got something else"),
        (small_report().to_json().replace('"format_version": 1', '"format_version": 99'), "Got 99"),
        (small_report().to_json().replace('"axes"', '"axis"'), "Got others"),
        (small_report().to_json().replace('"before_ns"', '"before"'), "Got others"),
    ],
)
def test_truncated_and_foreign_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    """The message names the file and what is wrong with it."""
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=f"Expected .*r.json.*{words}"):
        Report.from_json(path)


def test_reading_needs_no_torch() -> None:
    """A report is read and printed where torch is not loaded, and without waiting for matplotlib."""
    program = (
        "import sys\nfrom structprune.report import Report\n"
        f"print(Report.from_json({small_report().to_json()!r}))\n"
        "print(sorted({'torch', 'matplotlib'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parent.parent
    stub = "import sys, types\nhouse = types.ModuleType('structprune')\n"
    stub += f"house.__path__ = [{str(root / 'structprune')!r}]\nsys.modules['structprune'] = house\n"
    answer = subprocess.run([sys.executable, "-c", stub + program], capture_output=True, text=True, cwd=root)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[]"


def test_versions_are_those_installed() -> None:
    """What a result depends on is there."""
    assert {"python", "torch", "numpy", "platform"} <= installed_versions().keys()


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collects what a browser would fetch, all ids, and the text; counts on balanced tags."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset") and not (value or "").startswith("#"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag in ("script", "link", "iframe", "img", "object"):
            self.fetched.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "br"):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read_page(report: Report, folder: Path) -> tuple[str, Page]:
    """Write a report's page and parse it."""
    path = report.to_html(folder / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open
    return text, page


@pytest.mark.parametrize("report", [small_report(), large_report(100), bare_report()])
def test_the_page_needs_no_network(report: Report, tmp_path: Path) -> None:
    """Nothing is fetched: no scripts, images, fonts or style sheets from anywhere; tags are balanced, ids unique."""
    text, page = read_page(report, tmp_path)
    assert page.fetched == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_has_all_parts(tmp_path: Path) -> None:
    """Each plot is there, and each table."""
    text, page = read_page(small_report(), tmp_path)
    words = " ".join(page.words)
    for plot in ("Widths before and after", "Loss curves", "Costs, predicted and counted", "Accuracy by stage"):
        assert f'aria-label="{plot}"' in text
    for word in ("Recall per class", "LayerNorm", "norm.bias[0]", "recalibrated", "2.13.0", "seed", "2.06 ms"):
        assert word in words


def test_the_plots_follow_light_and_dark(tmp_path: Path) -> None:
    """No plot has a colour of its own: each is a variable of the page, which has two values for it."""
    text, _ = read_page(small_report(), tmp_path)
    plots = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink)" in plots
    assert not re.search(r"(fill|stroke): #", plots)
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert all(text.count(f"--{name}:") == 2 for name in used)


def test_long_networks_fit_the_page(tmp_path: Path) -> None:
    """The plots show the most pruned axes and say how many are left out; the table has them all."""
    _, page = read_page(large_report(100), tmp_path)
    words = " ".join(page.words)
    assert f"The {CURVES} axes that lose the most; {100 - CURVES} more" in words
    assert f"The {WIDTH_BARS} most pruned axes; {100 - WIDTH_BARS} more" in words
    assert "blocks.0.mlp" in words


def test_what_users_name_is_shown_and_not_run(tmp_path: Path) -> None:
    """Names and notes with markup in them, or with what matplotlib takes for formulas, are text on the page."""
    name = "<script>alert(1)</script> $x & ${title} $\\frac$"
    report = small_report(
        model_name=name,
        notes=(name,),
        axes=(AxisRow(name, 3, 2),),
        curves=(CurveRow(name, (0, 3), (1.0, 0.0), 2),),
        pinned=((name, 0, name),),
    )
    _, page = read_page(report, tmp_path)
    assert page.fetched == []
    assert name in "".join(page.words)


def test_equal_reports_give_equal_pages(tmp_path: Path) -> None:
    """No time and no random id is in the page."""
    assert read_page(small_report(), tmp_path)[0] == read_page(small_report(), tmp_path)[0]


def test_losses_that_are_not_finite_are_left_out_of_the_plots(tmp_path: Path) -> None:
    """A curve that begins at infinity, and a network whose loss is not a number, still make a page."""
    report = small_report(
        curves=(CurveRow("a", (0, 1, 2), (math.inf, 1.0, 0.0), 1), CurveRow("b", (), (), 0)),
        quality=(QualityRow("dense", math.nan, None, 3), QualityRow("pruned", 0.5, None, 3)),
        axes=(AxisRow("a", 2, 0),),
        costs=(CostRow("macs", 0, 0, 0, 0), CostRow("params", 10, 100, 5)),
    )
    read_page(report, tmp_path)
