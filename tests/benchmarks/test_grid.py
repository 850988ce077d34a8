"""Tests of grids: counts of blocks, the queue that survives kills, figures over seeds, pages."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.grid.cell import DENSE, Cell, cells_of, kept_blocks
from benchmarks.grid.loading import EpochBatches, order
from benchmarks.grid.pages import Page, Part, Table, as_html, as_markdown
from benchmarks.grid.queue import Queue
from benchmarks.grid.report import distortion, panels_of, picture, warning_of
from benchmarks.grid.row import Row, join_rows, read_rows, summary

ROOT = Path(__file__).resolve().parent.parent.parent
CELL = Cell("net", "acdc", 8, 0.9, 0)


def row(cell: Cell, value: float | None, recalls: tuple[float, ...] = (), **changes: object) -> Row:
    """Return a row of one figure."""
    return Row(**{"cell": cell, "values": {"loss": value}, "settings": {}, "recalls": {"test": recalls}, **changes})  # type: ignore[arg-type]


@given(st.integers(1, 10**6), st.integers(0, 9999))
def test_kept_blocks_are_the_decimal_sparsitys_rounded_share(count, per_mille):
    """k = round((1 - s) n) of the sparsity as it is written, halves up, whatever floating point makes of it."""
    exact = (1 - Fraction(per_mille, 10000)) * count
    assert kept_blocks(count, per_mille / 10000) == int(exact + Fraction(1, 2))


def test_dense_networks_are_measured_once_a_seed():
    """The dense network has no block size: it stands once for each network and seed, before the others."""
    cells = cells_of(["a", "b"], ["acdc", DENSE], [8, 16], [0.5, 0.9], range(2))
    assert len(cells) == len(set(cells)) == 2 * 2 * (1 + 4)
    assert [cell.seed for cell in cells] == [0] * 10 + [1] * 10
    assert cells[0] == Cell("a", DENSE, 0, 0.0, 0)


def test_cells_have_names_of_their_own():
    """No two cells share a file."""
    cells = cells_of(["a"], ["acdc", "sa++", DENSE], [5, 10], [0.9, 0.95, 0.99, 0.995], range(3))
    assert len({cell.key for cell in cells}) == len(cells)


def test_batches_hold_every_example_once_and_follow_the_epoch_told():
    """An epoch's batches hold each example once, up to a smaller last batch; another epoch has another order."""
    batches = EpochBatches(np.arange(10), 3, seed=1)
    first = [tuple(batch) for batch in batches]
    assert len(set(sum(first, ()))) == 9
    batches.set_epoch(1)
    second, third = [tuple(batch) for batch in batches], [tuple(batch) for batch in batches]
    assert first == third != second
    assert sum(second, ()) == tuple(order(np.arange(10), 1, 1)[:9])


# -------------------------------------------------------------------------------------------------- the queue


def no_settings(cell: Cell) -> dict[str, object]:
    """Return settings of cells that have none."""
    return {}


def test_finished_cells_are_not_taken_again(tmp_path):
    """A cell with a row is passed over, in this process and in the next."""
    cells = cells_of(["a"], ["acdc"], [8], [0.5, 0.9], range(1))
    queue = Queue(tmp_path, no_settings)
    taken = []
    for cell in queue.take(cells):
        taken.append(cell)
        queue.finish(row(cell, 1.0))
    assert taken == cells
    assert list(Queue(tmp_path, no_settings).take(cells)) == []
    assert [one.cell for one in read_rows(tmp_path)] == sorted(cells)


def test_rows_of_other_settings_are_refused(tmp_path):
    """A row that was measured otherwise is neither taken for this grid's nor measured over."""
    Queue(tmp_path, no_settings).finish(row(CELL, 1.0, settings={"epochs": 3}))
    with pytest.raises(ValueError, match="another epochs"):
        list(Queue(tmp_path, lambda cell: {"epochs": 4}).take([CELL]))


HOLD = """
import sys, time
from pathlib import Path
from benchmarks.grid.cell import Cell
from benchmarks.grid.queue import Queue
for cell in Queue(Path(sys.argv[1]), lambda cell: {}).take([Cell("net", "acdc", 8, 0.9, 0)]):
    print("taken", flush=True)
    time.sleep(600)
"""


def test_a_cell_is_one_processs_until_it_dies(tmp_path):
    """A cell that another process measures is not taken; when that process is killed, it is."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"taken\n"
        assert list(Queue(tmp_path, no_settings).take([CELL])) == []
        other.kill()
        other.wait()
    assert list(Queue(tmp_path, no_settings).take([CELL])) == [CELL]


def test_joined_rows_are_the_single_ones(tmp_path):
    """Rows put together in one file are read back as they were."""
    rows = [row(CELL, 1.0, (0.5, 1.0), notes=("said",)), row(Cell("net", "sa++", 8, 0.9, 0), None)]
    join_rows(tmp_path, rows)
    assert read_rows(tmp_path) == rows
    assert read_rows(tmp_path / "nowhere") == []


def test_a_damaged_row_is_named(tmp_path):
    """A row that cannot be read is refused by its file, not measured over in silence."""
    queue = Queue(tmp_path, no_settings)
    queue.finish(row(CELL, 1.0))
    path = tmp_path / "rows" / f"{CELL.key}.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=f"Expected a row in .*{CELL.method}"):
        list(queue.take([CELL]))


# ---------------------------------------------------------------------------------------------------- figures


def test_figures_are_means_with_their_spread():
    """Mean and standard deviation with n - 1, runs that diverged counted apart."""
    rows = [row(CELL, value) for value in (1.0, 2.0, 4.0)] + [row(CELL, None, values={"diverged": 1.0})]
    found = summary(rows, "loss")
    assert (found.count, found.diverged) == (3, 1)
    assert found.mean == pytest.approx(7 / 3)
    assert found.spread == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_recall_distortion_compares_with_the_dense_network_of_the_seed():
    """Mean absolute change and largest fall of the classes' recalls, seed by seed."""
    dense = [row(Cell("net", DENSE, 0, 0.0, seed), 0.0, (0.5, 0.9, 0.7)) for seed in (0, 1)]
    pruned = [row(CELL, 0.0, (0.6, 0.5, 0.7)), row(Cell("net", "acdc", 8, 0.9, 2), 0.0, (0.0, 0.0, 0.0))]
    assert distortion(pruned, [*dense, *pruned]) == pytest.approx((100 * 0.5 / 3, 40.0))
    assert distortion(pruned[1:], [*dense, *pruned]) is None


def test_published_curves_stand_beside_measured_ones():
    """A panel has ours and the paper's curve of the same block size, and the dense network's level."""
    rows = [row(Cell("net", DENSE, 0, 0.0, 0), 0.4), row(CELL, 0.5), row(Cell("net", "acdc", 16, 0.9, 0), 0.6)]
    panels = panels_of(rows, "loss", {("acdc", 8, 0.9): 0.45, ("sa++", 8, 0.9): 0.44})
    assert [panel.title for panel in panels] == ["8 x 8 blocks", "16 x 16 blocks"]
    assert [(one.label, one.published, one.points) for one in panels[0].series] == [
        ("acdc", False, ((0.9, 0.5, None),)),
        ("acdc", True, ((0.9, 0.45, None),)),
    ]
    assert panels[0].level == 0.4
    assert picture("loss", panels, "loss")[0][1].startswith(b"\x89PNG")


def test_samples_are_marked():
    """Rows that come from a part of the data put a warning over the page; whole data do not."""
    assert warning_of([row(CELL, 1.0)]) == ""
    assert "a 10-row sample" in warning_of([row(CELL, 1.0, sample="a 10-row sample")])


def test_pages_say_the_same_in_both_forms():
    """Markdown and HTML hold the warning, the sentences, every cell and the picture."""
    page = Page("Title", "Beware", (Part("One", ("A & B", Table(("name", "x"), (("a", "1"),)), ("seen", b"png"))),))
    text, pictures = as_markdown(page, "curves")
    assert pictures == {"curves-1.png": b"png"}
    for said in ("# Title", "**Beware**", "| a | 1 |", "![seen](curves-1.png)", "A & B"):
        assert said in text
    html = as_html(page, ["data:image/png;base64,cG5n"])
    for said in ("Beware", "<td>a</td><td>1</td>", 'src="data:image/png;base64,cG5n"', "A &amp; B"):
        assert said in html
