"""Tests of Criteo's training on real rows: a sample that is marked as one in everything that is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

pytest.importorskip("pyarrow", reason="needs pyarrow, of the extra bench")
pytest.importorskip("accelerate", reason="needs accelerate, of the extra train")

from benchmarks.criteo.__main__ import main
from benchmarks.criteo.arrays import Prepared, Rows
from benchmarks.criteo.loading import training_loader
from benchmarks.criteo.measure import fields_alive
from benchmarks.criteo.network import FIRST_LAYER, ClickNetwork, click_loss
from benchmarks.criteo.quality import predictions, quality
from benchmarks.criteo.reference import best_fields
from benchmarks.criteo.sample import write_sample
from benchmarks.grid.row import read_rows, summary

RECIPE = ("--recipe", "bars", "--batch-size", "256", "--lr", "5e-4", "--min-phase-steps", "4")


@pytest.fixture(scope="module")
def few_rows(data_folder, tmp_path_factory) -> Path:
    """Return a file of the first 1,500 real rows."""
    return write_sample(data_folder, tmp_path_factory.mktemp("rows") / "train.txt", 1500)


def made_up(rows: int = 400, numeric: int = 2, categorical: int = 3) -> Rows:
    """Return rows of which the first category alone decides the label, mostly."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (rows, categorical)).astype(np.int32)
    labels = (rng.random(rows) < np.where(ids[:, 0] > 1, 0.9, 0.1)).astype(np.uint8)
    return Rows(rng.random((rows, numeric)).astype(np.float32), ids, labels)


def test_batches_are_the_rows_they_name():
    """A batch holds the rows that the order names, in its order."""
    rows = made_up()
    loader = training_loader(rows, 50, seed=3)
    batches = list(loader)
    assert len(batches) == 8
    seen = torch.cat([inputs[0] for inputs, _ in batches]).numpy()
    order = [int(np.flatnonzero((rows.numbers == row).all(1))[0]) for row in seen]
    assert sorted(order) == list(range(400))
    np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]).numpy(), rows.labels[order])
    np.testing.assert_array_equal(torch.cat([inputs[1] for inputs, _ in batches]).numpy(), rows.ids[order])


def test_quality_is_what_scikit_learn_says():
    """Log-loss, AUC and recalls agree with their definitions."""
    rows, model = made_up(), ClickNetwork(2, (4, 4, 4), hidden=(8,))
    found, logits = quality(model, rows), predictions(model, rows)
    rates = 1 / (1 + np.exp(-logits))
    assert found.log_loss == pytest.approx(log_loss(rows.labels, rates))
    assert found.auc == pytest.approx(roc_auc_score(rows.labels, rates))
    above = rates > rows.labels.mean()
    assert found.recalls == pytest.approx(((~above)[rows.labels == 0].mean(), above[rows.labels == 1].mean()))


def test_fields_alive_are_those_with_weights():
    """A field counts as read where any of its ten inputs has a weight in the first layer."""
    model = ClickNetwork(13, (4,) * 26, hidden=(8,))
    weight = model.get_parameter(FIRST_LAYER)
    with torch.no_grad():
        weight.zero_()
        weight[3, 57] = 1.0
    assert np.flatnonzero(fields_alive(model)).tolist() == [5]


def run(source: Path, out: Path, *more: str) -> int:
    """Run the command on a file of rows."""
    where = ("--data", str(source), "--work", str(out / "arrays"), "--out", str(out / "results"))
    return main([*where, *RECIPE, *more])


def test_a_small_run_is_measured_and_marked(few_rows, tmp_path, capsys):
    """Dense and pruned networks on real rows: exact counts, and every output says that these are a sample."""
    grid = ("--methods", "dense", "gmp", "--blocks", "20", "--sparsity", "99", "--seeds", "1", "--epochs", "2")
    more = ("--last-rows", "200", "300", "--reference", "--batch-size", "100", "--min-phase-steps", "1")
    assert run(few_rows, tmp_path, *more, *grid) == 0
    rows = {row.cell.method: row for row in read_rows(tmp_path / "results")}
    assert set(rows) == {"dense", "gmp", "best fields: 8"}
    assert rows["gmp"].values["kept blocks"] == 4
    assert rows["gmp"].values["fields alive"] <= 8  # type: ignore[operator]
    assert rows["best fields: 8"].values["fields alive"] == 8
    assert all(row.sample == "a 1,500-row sample, not the 45,840,617 rows of kaggle" for row in rows.values())
    assert "1,500-row sample" in capsys.readouterr().out
    for path in ("table.md", "report.html"):
        text = (tmp_path / "results" / path).read_text()
        assert "a 1,500-row sample, not the 45,840,617 rows of kaggle. They reproduce no published figure" in text


def test_the_best_field_is_the_one_that_decides(tmp_path):
    """Of a trained network's fields the one whose categories decide the label is ranked first."""
    rows = made_up()
    prepared = Prepared(tmp_path, {"validation": rows}, ("I1", "I2", "C1", "C2", "C3"), 2, (4, 4, 4), {})
    model = ClickNetwork(2, (4, 4, 4), hidden=(8,))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for inputs, labels in list(training_loader(rows, 100, seed=0)) * 10:
        optimizer.zero_grad()
        click_loss(model(*inputs), labels).backward()
        optimizer.step()
    assert best_fields(model, prepared, 1, seed=0).tolist() == [False, False, True, False, False]
    assert best_fields(model, prepared, 5, seed=0).all()


@pytest.mark.slow
def test_ten_thousand_real_rows(data_folder, tmp_path):
    """Two methods at two sparsities over three seeds; the dense network's AUC on the last 2,000 rows is above .72."""
    source = write_sample(data_folder, tmp_path / "train.txt")
    grid = ("--methods", "dense", "acdc", "sa++", "--blocks", "10", "--sparsity", "80", "90", "--epochs", "8")
    assert run(source, tmp_path, "--last-rows", "1000", "2000", *grid) == 0
    rows = read_rows(tmp_path / "results")
    assert len(rows) == 3 * (1 + 2 * 2)
    dense = summary([row for row in rows if row.cell.method == "dense"], "test AUC")
    assert dense.count == 3
    assert dense.mean is not None
    assert dense.mean >= 0.72
    kept = {row.cell.sparsity: row.values["kept blocks"] for row in rows if row.cell.method != "dense"}
    assert kept == {0.8: 312.0, 0.9: 156.0}
