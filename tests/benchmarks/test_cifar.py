"""Facts of the CIFAR networks and of the images' coding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.case import count_macs, recalibrated
from benchmarks.cifar import Block, ResNet, data_folder, decoded, images, trained_resnet


def coded(pixels: np.ndarray) -> np.ndarray:
    """Code RGB images (N, 3, H, W) pixel by pixel, as the definition says: the slow opposite of `decoded`."""
    red, green, blue = (pixels[:, channel].astype(int) for channel in range(3))
    planes = np.stack([green, red - green, blue - green])
    residuals = np.zeros_like(planes)
    for row in range(planes.shape[-2]):
        for column in range(planes.shape[-1]):
            above = planes[..., row - 1, column] if row else 0
            left = planes[..., row, column - 1] if column else 0
            corner = planes[..., row - 1, column - 1] if row and column else 0
            residuals[..., row, column] = planes[..., row, column] - (above + left - corner)
    return (residuals % 256).astype(np.uint8)


def test_decoding_undoes_the_coding() -> None:
    """Any image comes back exactly, whatever overflows on the way."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 3, 5, 4), dtype=np.uint8)
    assert np.array_equal(decoded(coded(pixels)), pixels)


@pytest.mark.parametrize(("depth", "macs", "params"), [(20, 40_551_040, 269_722), (56, 125_485_696, 853_018)])
def test_networks_are_those_of_the_paper(depth: int, macs: int, params: int) -> None:
    """ResNet-20 has 0.27 M parameters and 41 M macs, ResNet-56 0.85 M and 125 M."""
    model = ResNet(depth).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert count_macs(model, torch.zeros(2, 3, 32, 32)) == macs


def test_depths_are_6n_plus_2() -> None:
    """Another depth is refused."""
    with pytest.raises(ValueError, match=r"Expected a depth of 6n \+ 2. Got 18"):
        ResNet(18)


def test_the_shortcut_keeps_channels_in_the_middle() -> None:
    """Where the width doubles, the old channels become the middle ones, at every second pixel."""
    model = ResNet(8)
    block = model.layer2[0]
    assert isinstance(block, Block)
    torch.nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 16, 4, 4)
    y = block.eval()(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any()


def test_recalibration_is_the_mean_over_batches() -> None:
    """The first batch norm gets the mean of its batches' means; the original keeps what it had."""
    model = ResNet(8).eval()
    batches = [(torch.randn(4, 3, 8, 8), torch.zeros(4)) for _ in range(3)]
    with torch.no_grad():
        means = torch.stack([model.conv1(inputs).mean(dim=(0, 2, 3)) for inputs, _ in batches])
    changed = recalibrated(model, batches)
    assert isinstance(changed, ResNet)
    assert torch.allclose(changed.get_buffer("bn1.running_mean"), means.mean(0), atol=1e-6)
    assert not model.get_buffer("bn1.running_mean").any()
    assert changed.bn1.momentum == model.bn1.momentum and not changed.bn1.training


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STRUCTPRUNE_DATA is asked before ../shared/data, and an argument before both."""
    monkeypatch.setenv("STRUCTPRUNE_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    (tmp_path / "other").mkdir()
    assert data_folder(tmp_path / "other") == tmp_path / "other"


def test_real_images_are_balanced(data_folder: Path) -> None:
    """The test set has a thousand images of each class, and normalised they have about zero mean and unit spread."""
    test = images(data_folder, "test")
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    assert abs(float(test.inputs.mean())) < 0.2 and abs(float(test.inputs.std()) - 1) < 0.2


def test_a_sample_is_the_seeds(data_folder: Path) -> None:
    """Equal seeds draw the same images, others do not, and none is drawn twice."""
    train = images(data_folder, "train_0")
    first, again, other = (train.sample(500, seed) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs) and not torch.equal(first.inputs, other.inputs)
    assert len(torch.unique(train.sample(len(train), 0).targets, return_counts=True)[1]) == 10


def test_trained_weights_are_at_home(data_folder: Path) -> None:
    """The trained ResNet-20 names 92 % of the first 200 test images, give or take four."""
    model = trained_resnet(data_folder, "resnet20")
    test = images(data_folder, "test").first(200)
    with torch.no_grad():
        accuracy = (model(test.inputs).argmax(1) == test.targets).float().mean()
    assert 0.88 <= float(accuracy) <= 0.96


def test_an_unknown_network_is_refused(tmp_path: Path) -> None:
    """A name without a depth is refused before any file is looked for."""
    with pytest.raises(ValueError, match="Expected a name such as resnet20. Got 'vgg'"):
        trained_resnet(tmp_path, "vgg")
