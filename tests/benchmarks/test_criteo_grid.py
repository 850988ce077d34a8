"""Tests of Criteo's grid: counts and bounds, published figures, the network, the command line."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from benchmarks.criteo.__main__ import main
from benchmarks.criteo.coverage import fields_reached, reach
from benchmarks.criteo.find import found_files
from benchmarks.criteo.network import ClickNetwork, base_rate_loss, parameter_counts
from benchmarks.criteo.published import TABLE_2
from benchmarks.criteo.training import RECIPES


@pytest.mark.parametrize(
    ("block", "sparsity", "kept", "blocks", "fields", "units"),
    [
        (5, 0.99, 62, 6240, 39, 310),
        (10, 0.97, 47, 1560, 39, 400),
        (10, 0.98, 31, 1560, 31, 310),
        (10, 0.99, 16, 1560, 16, 160),
        (20, 0.90, 40, 400, 39, 400),
        (20, 0.95, 20, 400, 39, 400),
        (20, 0.97, 12, 400, 24, 240),
        (20, 0.98, 8, 400, 16, 160),
        (20, 0.99, 4, 400, 8, 80),
    ],
)
def test_blocks_and_what_they_reach(block, sparsity, kept, blocks, fields, units):
    """Blocks of the 390 x 400 layer, how many stay, and the most fields and hidden units that they can reach."""
    found = reach(block, sparsity)
    assert (found.kept, found.blocks, found.fields, found.units) == (kept, blocks, fields, units)


@pytest.mark.parametrize(("block", "width"), [(2, 3), (3, 2), (4, 3), (5, 2), (7, 3)])
def test_fields_reached_are_the_most_of_all_choices(block, width):
    """The bound is what the best choice of rows of blocks touches, found by trying all."""
    fields = 6
    runs = [
        {place // width for place in range(start, min(start + block, fields * width))}
        for start in range(0, fields * width, block)
    ]
    for rows in range(len(runs) + 1):
        best = max(len(set().union(*chosen)) for chosen in combinations(runs, rows))
        assert fields_reached(rows, block, fields, width) == best


def test_the_published_table_is_whole():
    """Four methods at three block sizes and five sparsities, losses rising with sparsity for SequentialAttention++."""
    assert len(TABLE_2) == 4 * 3 * 5
    for block in (5, 10, 20):
        losses = [TABLE_2["sa++", block, sparsity] for sparsity in (0.90, 0.95, 0.97, 0.98, 0.99)]
        assert losses == sorted(losses)
    assert TABLE_2["magnitude", 20, 0.98] == 0.5447


def test_the_dense_layers_have_the_papers_sizes():
    """156,000 weights in the first layer, about 476,000 in all dense layers."""
    counts = parameter_counts([3, 4])
    assert counts["first layer"] == 156_000
    model = ClickNetwork(37, [3, 4])
    dense = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("hidden", "last")))
    assert counts["dense layers"] == dense
    assert parameter_counts([3] * 26)["all"] == sum(p.numel() for p in ClickNetwork(13, [3] * 26).parameters())


def test_fields_have_embeddings_of_their_own():
    """The same identity in two fields has two vectors, a number scales its field's vector, hidden fields are zero."""
    seen = np.array([True, True, False])
    model = ClickNetwork(1, [5, 5], hidden=(4,), fields=seen)
    inputs: list[torch.Tensor] = []
    model.hidden[0].register_forward_hook(lambda module, given, output: inputs.append(given[0].detach()))
    model(torch.tensor([[2.0]]), torch.tensor([[3, 3]], dtype=torch.int32))
    number, first, second = inputs[0][0].view(3, 10)
    torch.testing.assert_close(number, 2 * model.numbers[0].detach())
    torch.testing.assert_close(first, model.table.weight[3].detach())
    assert float(second.abs().max()) == 0.0
    model.seen.fill_(1.0)
    model(torch.tensor([[2.0]]), torch.tensor([[3, 3]], dtype=torch.int32))
    torch.testing.assert_close(inputs[1][0].view(3, 10)[2], model.table.weight[8].detach())


def test_the_base_rate_loss_is_the_entropy():
    """At the click rate of Criteo_x1 a network that sees nothing loses 0.5690 nats."""
    assert base_rate_loss(0.2562) == pytest.approx(0.5690, abs=5e-5)


def test_the_papers_learning_rate_falls_exponentially():
    """From 2e-2 at the first step to 3e-4 at the last, by a constant factor."""
    training = next(recipe for recipe in RECIPES if recipe.name == "paper").training
    rates = [training.lr * training.rate(step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(2e-2)
    assert rates[-1] == pytest.approx(3e-4)
    factors = np.array(rates[1:]) / np.array(rates[:-1])
    np.testing.assert_allclose(factors, factors[0])


def test_embeddings_alone_are_decayed():
    """The penalty of the BARS recipe is on the embeddings of numbers and categories, and on nothing else."""
    recipe = next(recipe for recipe in RECIPES if recipe.name == "bars")
    model = ClickNetwork(13, [3] * 26)
    optimizer = recipe.training.make_optimizer([{"params": list(model.parameters())}])
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model.numbers), id(model.table.weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


# --------------------------------------------------------------------------------------------- the command line


def test_the_dry_run_needs_no_data(tmp_path, capsys):
    """The grid, its bounds, parameters and cost are printed where there are no rows, with the paper's losses."""
    assert main(["--dry-run", "--out", str(tmp_path), "--work", str(tmp_path / "work")]) == 0
    said = capsys.readouterr().out
    for text in (
        "62 of 6,240",
        "16 of 1,560",
        "4 of 400",
        "477,601",
        "0.5253",
        "33,003,326 training rows",
        "546 of 546",
    ):
        assert text in said


def test_absent_rows_are_answered_with_instructions(tmp_path, capsys):
    """Without rows nothing is made up: the message says what is expected and where to get it."""
    assert main(["--out", str(tmp_path)]) == 2
    assert main(["--out", str(tmp_path), "--data", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    for text in ("criteo_x1", "train.txt", "day_0 ... day_23", "https://"):
        assert said.count(text) >= 2


def test_missing_files_are_named(tmp_path, capsys):
    """A folder with a part of Criteo_x1 is refused with the files that it lacks."""
    (tmp_path / "train.csv.gz").touch()
    assert main(["--out", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "Got no valid.csv, test.csv" in capsys.readouterr().err


def test_layouts_are_found_by_their_files(tmp_path):
    """Names of files tell the layout, packed ones too."""
    (tmp_path / "train.txt.gz").touch()
    assert found_files(tmp_path)[0].name == "kaggle"
    assert found_files(tmp_path / "train.txt.gz")[0].name == "kaggle"
    other = tmp_path / "rows.tsv"
    other.touch()
    assert found_files(other, "terabyte")[0].name == "terabyte"
    with pytest.raises(FileNotFoundError, match="--layout"):
        found_files(other)


def test_a_report_without_rows_says_so(tmp_path, capsys):
    """Nothing is reported where nothing was measured."""
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert "Expected measured rows. Got none." in capsys.readouterr().err
