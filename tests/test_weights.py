"""Files of weights on the command line: what fits is loaded, what does not is refused by name, nothing is executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from structprune.cli.given import load_weights
from structprune.errors import FileFormatError
from tests.cases import BY_NAME
from tests.networks import PlainCNN


def test_weights_of_other_networks_are_refused(tmp_path: Path) -> None:
    """Missing, additional and differently shaped weights are named."""
    state = PlainCNN().state_dict()
    kept = dict(list(state.items())[1:])
    for changed, expected in (
        (kept, "lacks conv1.weight"),
        ({**state, "extra": torch.ones(1)}, "has besides extra"),
        ({**state, "conv1.weight": torch.ones(1)}, "in other shapes conv1.weight"),
    ):
        torch.save(changed, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=expected):
            load_weights(PlainCNN(), tmp_path / "weights.pt")


def test_tied_weights_may_be_there_once(tmp_path: Path) -> None:
    """A file that stores a tied weight under one of its names fits, as safetensors files do."""
    model = BY_NAME["tied_embeddings"].build()
    save_file(dict(model.named_parameters()), tmp_path / "tied.safetensors")
    other = BY_NAME["tied_embeddings"].build()
    load_weights(other, tmp_path / "tied.safetensors")
    for (name, wanted), (_, got) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(wanted, got), name


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_broken_weights_are_refused(tmp_path: Path, name: str) -> None:
    """A truncated file, and one of other things, are refused."""
    path = tmp_path / name
    for content in (b"", b"not weights at all, but long enough to be read as a header"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="Expected weights"):
            load_weights(PlainCNN(), path)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    """A whole pickled network is refused rather than executed."""
    torch.save(PlainCNN(), tmp_path / "network.pt")
    with pytest.raises(FileFormatError):
        load_weights(PlainCNN(), tmp_path / "network.pt")
