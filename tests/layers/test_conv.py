"""Block-sparse convolutions, by every backend that runs here."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from structprune.layers import Activation, Backend, BlockSparseConv2d, pack
from structprune.layers.geometry import columns_of_weight, padded_nhwc
from tests.layers.layer_cases import ACTIVATIONS, BACKENDS, CONV, ConvCase, activated, close


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CONV, ids=str)
def test_the_layer_equals_the_masked_dense_one(backend: Backend, activation: Activation, case: ConvCase) -> None:
    """Any kernel, stride, padding, order and layout of the image gives the masked convolution."""
    pair = case.pair(backend, activation)
    for batch, layout in itertools.product((1, 3), (torch.contiguous_format, torch.channels_last)):
        x = torch.randn(batch, 8, *case.image).contiguous(memory_format=layout)
        y = pair.sparse.eval()(x)
        assert close(y, activated(pair.dense(x), activation))
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CONV, ids=str)
def test_gradients_are_those_of_the_masked_dense_layer(
    backend: Backend, training: bool, activation: Activation, case: ConvCase
) -> None:
    """Image, values and bias have the masked convolution's gradients."""
    pair = case.pair(backend, activation)
    sparse = pair.sparse.train(training)
    x = torch.randn(2, 8, *case.image, requires_grad=True)
    y, expected = sparse(x), activated(pair.dense(x), activation)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *sparse.parameters()], upstream)
    known = torch.autograd.grad(expected, [x, *pair.dense.parameters()], upstream)
    assert close(found[0], known[0])
    assert close(found[1], pack(columns_of_weight(known[1]), sparse.pattern).values)
    assert close(found[2], known[2])


@pytest.mark.parametrize("case", CONV, ids=str)
def test_back_to_dense_is_exact(case: ConvCase) -> None:
    """The dense convolution made of a block-sparse one has the masked weights, bit for bit."""
    pair = case.pair()
    dense = pair.sparse.to_dense()
    assert isinstance(dense, nn.Conv2d)
    assert torch.equal(dense.weight, pair.dense.weight)
    x = torch.randn(2, 8, *case.image)
    assert close(dense(x), pair.dense(x))


def test_a_batch_of_none_is_an_empty_batch() -> None:
    """No images in, no images out."""
    assert CONV[0].pair().sparse(torch.zeros(0, 8, 7, 9)).shape == (0, 40, 7, 9)


def test_a_mask_of_blocks_keeps_channels_of_one_tap() -> None:
    """A block is filters by channels at one place of the kernel."""
    dense = nn.Conv2d(4, 16, 3)
    kept = torch.zeros(1, 9, dtype=torch.bool)
    kept[0, 5] = True  # tap (1, 2)
    back = BlockSparseConv2d.from_dense(dense, kept, 16, 4).to_dense().get_parameter("weight")
    expected = torch.zeros_like(dense.weight)
    expected[:, :, 1, 2] = dense.weight.detach()[:, :, 1, 2]
    assert torch.equal(back, expected)


def test_offsets_find_each_column_in_the_padded_image() -> None:
    """Address of an output's corner plus a column's offset is the pixel that the tap reads."""
    layer = ConvCase((3, 2), (2, 1), (1, 1), 16, 1, (6, 5)).pair().sparse
    x = torch.randn(1, 8, 6, 5)
    image, shape = padded_nhwc(x, layer.geometry), layer.geometry
    offsets = shape.offsets(torch.arange(shape.taps * 8, dtype=torch.int32), 8, image.shape[2]).long()
    corner = (1 * shape.stride[0] * image.shape[2] + 3 * shape.stride[1]) * 8
    unfolded = nn.functional.unfold(x, shape.kernel, padding=shape.padding, stride=shape.stride)
    at = 1 * shape.output_size(6, 5)[1] + 3
    expected = unfolded[0, :, at].view(8, -1).t().flatten()
    assert torch.equal(image.flatten()[corner + offsets], expected)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_is_understood(padding: str) -> None:
    """'same' and 'valid' give the dense layer's output."""
    dense = nn.Conv2d(8, 16, 3, padding=padding)
    x = torch.randn(1, 8, 6, 6)
    layer = BlockSparseConv2d.from_dense(dense, torch.ones_like(dense.weight).bool(), 16, 8)
    assert close(layer(x), dense(x))


@pytest.mark.parametrize(
    ("dense", "width", "words"),
    [
        (nn.Conv2d(8, 16, 3, dilation=2), 1, "dilation 1, groups 1"),
        (nn.Conv2d(8, 16, 3, groups=2), 1, "dilation 1, groups 1"),
        (nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"), 1, "dilation 1, groups 1"),
        (nn.Conv2d(8, 16, 2, padding="same"), 1, "Expected an odd kernel"),
        (nn.Conv2d(6, 16, 3), 4, "Expected a width that divides the 6 channels"),
    ],
)
def test_convolutions_of_other_kinds_are_refused(dense: nn.Conv2d, width: int, words: str) -> None:
    """What the layer cannot be equal to is refused when it is made."""
    with pytest.raises(ValueError, match=words):
        BlockSparseConv2d.from_dense(dense, torch.ones_like(dense.weight).bool(), 16, width)


def test_the_transposed_pattern_is_for_one_pixel() -> None:
    """Asked for where it would not be used, it is refused; a 1 x 1 convolution uses it."""
    wide, point = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1)
    with pytest.raises(ValueError, match="Expected transposed=False"):
        BlockSparseConv2d.from_dense(wide, torch.ones_like(wide.weight).bool(), 16, 16, transposed=True)
    layer = BlockSparseConv2d.from_dense(point, torch.ones_like(point.weight).bool(), 16, 16, transposed=True)
    x = torch.randn(2, 16, 3, 3, requires_grad=True)
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    (known,) = torch.autograd.grad(point(x).sum(), x)
    assert close(found, known)
