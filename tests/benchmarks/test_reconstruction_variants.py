"""Facts of the comparison of reconstruction variants; one small run where real data are present."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import reconstruction_variants
from benchmarks.cifar import MissingDataError, data_folder
from benchmarks.reconstruction_variants import VARIANTS, Remeasured, fewer_rows, plain_targets
from structprune.criteria import LayerReconstruction, refit
from structprune.criteria.response import Response
from structprune.structures import channels
from tests import laws
from tests.cases import BY_NAME


def test_without_data_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing data are an error with instructions, status 2."""
    out = tmp_path / "out"
    assert reconstruction_variants.main(["--data", str(tmp_path), "--out", str(out)]) == 2
    assert "Expected" in capsys.readouterr().err
    assert not out.exists()


def test_changes_are_undone() -> None:
    """A variant's change lasts as long as its run."""
    rows, behind = refit.ROWS_PER_COLUMN, refit.response_behind
    with fewer_rows(), plain_targets():
        assert refit.ROWS_PER_COLUMN == rows // 4
        assert refit.response_behind(None) == Response()  # type: ignore[arg-type]
    assert (refit.ROWS_PER_COLUMN, refit.response_behind) == (rows, behind)
    assert len({variant.label for variant in VARIANTS}) == len(VARIANTS)


def test_measuring_batch_norm_anew_changes_statistics_alone() -> None:
    """The weights are those of the re-fit; every batch norm behind the cut has other statistics."""
    case = BY_NAME["residual"]
    model, example = case.make()
    structures = channels(model, example)
    selection = np.ones(structures.n, dtype=bool)
    selection[structures.axes[0].start] = False
    plain, other = (
        criterion(model, structures, laws.toy_data(example), laws.toy_loss).refit
        for criterion in (LayerReconstruction(probes=0), Remeasured(LayerReconstruction(probes=0)))
    )
    assert plain is not None
    assert other is not None
    before, after = plain(selection), other(selection)
    for name, tensor in before.items():
        if not name.endswith(("running_mean", "running_var")):
            assert torch.equal(tensor, after[name])
    assert any(name.endswith("running_var") for name in after)
    assert not any(name.endswith("running_var") for name in before)


def present() -> bool:
    """Whether the data folder is there."""
    try:
        data_folder(None)
    except MissingDataError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not present(), reason="needs the data folder")
def test_the_table_has_a_line_per_variant(tmp_path: Path) -> None:
    """A whole run on a few images."""
    arguments = ["--models", "resnet20", "--budgets", "0.7", "--images", "128", "--out", str(tmp_path)]
    assert reconstruction_variants.main(arguments) == 0
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(f"| {variant.label} |" in text for variant in VARIANTS)
