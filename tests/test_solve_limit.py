"""A solve beside the network's pruning limit: the kept fraction in the limit's currency, and the report's sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from structprune import Budget, Report
from structprune.account import kept_fraction, weights
from structprune.limit import Limit
from structprune.structures import blocks
from tests.cases import BY_NAME
from tests.test_limit_value import small_limit
from tests.test_report import small_report
from tests.test_solve import mlp, quiet, solved


def limit_of(model: torch.nn.Module, kind: str = "channels") -> Limit:
    """Return a limit that was made for this network: trust-region 12 %, measured from 16.1 % on."""
    count = sum(weight.numel() for weight in weights(model).values())
    return small_limit(weights=count, free=0, kind=kind, model_name=type(model).__name__)


@pytest.mark.parametrize("name", ["plain", "mlp", "residual", "torch_encoder", "tied_embeddings"])
def test_the_kept_fraction_is_that_of_the_smaller_networks_parameters(name: str) -> None:
    """What the masks leave is what the compiled network has, tied weights counted once and buffers not at all."""
    found = solved(BY_NAME[name], False)
    pruned = found.pruned
    count = sum(weight.numel() for weight in weights(found.model).values())
    left = sum(weight.numel() for weight in weights(pruned.model).values())
    assert pruned.built_as != "masked" and left < count
    fraction = kept_fraction(found.model, pruned.structures, pruned.selection)
    assert fraction == pytest.approx(left / count, abs=1e-12)


def test_masked_entries_are_not_kept() -> None:
    """Blocks that became zeros inside a network of the same size count as removed."""
    model = mlp()
    example = torch.randn(2, 10)
    structures = blocks(model, (4, 4), example=example)
    pruned = quiet(model, Budget(params=0.6), structures=structures, example=example)
    assert pruned.built_as == "masked"
    kept = sum(int(weight.count_nonzero()) for weight in weights(pruned.model).values())
    count = sum(weight.numel() for weight in weights(model).values())
    assert kept_fraction(model, structures, pruned.selection) == pytest.approx(kept / count)


def test_the_report_says_what_the_budget_means() -> None:
    """The sentence is that of the fraction kept, and is in the text, on the console, in JSON and on the page."""
    model = mlp()
    limit = limit_of(model)
    pruned = quiet(model, Budget(macs=0.5), limit=limit)
    report = pruned.report
    assert report.limit_sentence == limit.sentence(kept_fraction(model, pruned.structures, pruned.selection))
    assert report.limit_sentence.endswith("within reach, the loss was measured there")
    text = " ".join(str(report).split())
    assert f"limit {report.limit_sentence}" in text
    console = Console(file=io.StringIO(), width=300, color_system=None)
    report.print(console)
    assert report.limit_sentence in console.file.getvalue()  # type: ignore[attr-defined]
    assert Report.from_json(report.to_json()).limit_sentence == report.limit_sentence


def test_the_page_has_the_sentence(tmp_path: Path) -> None:
    """Among what is known of the choice."""
    report = small_report(limit_sentence="your budget keeps 8.00 % of the weights: expect loss")
    assert report.limit_sentence in report.to_html(tmp_path / "report.html").read_text()


def test_a_limit_of_single_weights_is_no_verdict_on_channels() -> None:
    """The report says so."""
    model = mlp()
    sentence = quiet(model, Budget(macs=0.5), limit=limit_of(model, "weights")).report.limit_sentence
    assert sentence.endswith("no verdict, that is the limit of single weights and the budget removes channels")


def test_without_a_limit_nothing_is_said() -> None:
    """No sentence, and no line for it."""
    report = quiet(mlp(), Budget(macs=0.5)).report
    assert report.limit_sentence == ""
    assert "limit" not in dict(report.facts())


def test_the_limit_of_another_network_is_refused() -> None:
    """By its number of weights, before any work is done; so is what is no limit."""
    with pytest.raises(
        ValueError, match="Expected the limit of this MLP with .* weights. Got that of a Digits with 2,462"
    ):
        quiet(mlp(), Budget(macs=0.5), limit=small_limit())
    with pytest.raises(TypeError, match="Expected a Limit. Got float. Pass what pruning_limit"):
        quiet(mlp(), Budget(macs=0.5), limit=0.5)


@pytest.mark.parametrize("earlier", [None, "At least 0.3 of macs are needed."])
def test_reports_from_before_there_were_limits_are_read(earlier: str | None) -> None:
    """They had a field of another name, mostly empty; what it said is kept."""
    content = json.loads(small_report().to_json())
    del content["limit_sentence"]
    assert Report.from_json(json.dumps(content)).limit_sentence == ""
    assert Report.from_json(json.dumps({**content, "limit": earlier})).limit_sentence == (earlier or "")
