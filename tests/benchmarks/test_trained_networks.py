"""The trained networks beside CIFAR's do what their files promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.cifar import MissingDataError, data_folder
from benchmarks.mobilenets import imagenet_sample, trained_mobilenet
from benchmarks.texts import Similarity, sentence_pairs, stories, trained_llama, trained_minilm


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of data, or a reason to skip."""
    try:
        return data_folder()
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("version", [1, 2])
def test_mobilenet(folder: Path, version: int) -> None:
    """Most training images get their class; chance is 0.1 %."""
    pytest.importorskip("PIL")
    found = imagenet_sample(folder, 24, seed=0)
    with torch.inference_mode():
        right = (trained_mobilenet(folder, version)(found.inputs).argmax(1) == found.targets).float().mean().item()
    assert right > 0.5


def test_minilm(folder: Path) -> None:
    """Similarities of vectors go with those that people gave: correlation as high as the model is known for."""
    pairs = sentence_pairs(folder, 96, seed=0)
    with torch.inference_mode():
        found = Similarity(trained_minilm(folder))(*pairs.inputs)
    assert np.corrcoef(found.numpy(), pairs.targets.numpy())[0, 1] > 0.75


def test_llama(folder: Path) -> None:
    """The next token costs about 1.6 nats; uniform guesses cost 6.2."""
    inputs, targets = stories(folder, 16, 128)
    with torch.inference_mode():
        scores = trained_llama(folder)(inputs)
    assert 1.3 < F.cross_entropy(scores.flatten(0, 1), targets.flatten()).item() < 1.9


def test_version(folder: Path) -> None:
    """A version without weights is refused."""
    with pytest.raises(ValueError, match="Expected version 1 or 2"):
        trained_mobilenet(folder, 3)
