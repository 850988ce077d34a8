"""Block-sparse linear layers, by every backend that runs here."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from structprune.layers import (
    DENSE,
    DENSE_ONEDNN,
    ROWLOOP,
    Activation,
    Backend,
    BlockSparseLinear,
    Packed,
    forget,
    pack,
    unpack,
)
from structprune.layers import dense as dense_backend
from tests.layers.layer_cases import ACTIVATIONS, BACKENDS, LINEAR, LinearCase, activated, close


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_the_layer_equals_the_masked_dense_one(backend: Backend, activation: Activation, case: LinearCase) -> None:
    """Any size, order, activation and number of leading dimensions gives the masked layer's output."""
    pair = case.pair(backend, activation)
    for shape in [(1,), (3,), (70,), (2, 5), (0,), ()]:
        x = torch.randn(*shape, case.inputs)
        assert close(pair.sparse.eval()(x), activated(pair.dense(x), activation))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("case", LINEAR[:3], ids=str)
def test_gradients_are_those_of_the_masked_dense_layer(
    backend: Backend, activation: Activation, training: bool, transposed: bool, case: LinearCase
) -> None:
    """Input, values and bias have the masked layer's gradients, in training and in evaluation mode."""
    pair = case.pair(backend, activation, transposed)
    sparse = pair.sparse.train(training)
    x = torch.randn(7, case.inputs, requires_grad=True)
    y, expected = sparse(x), activated(pair.dense(x), activation)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *sparse.parameters()], upstream)
    known = torch.autograd.grad(expected, [x, *pair.dense.parameters()], upstream)
    assert close(found[0], known[0])
    assert close(found[1], pack(known[1], sparse.pattern).values)
    assert close(found[2], known[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_as_exact_as_bfloat16(backend: Backend) -> None:
    """In bfloat16 the output has the type's accuracy, for few and for many tokens."""
    pair = LINEAR[1].pair(backend)
    for tokens in (5, 80):
        x = torch.randn(tokens, 64).bfloat16()
        y = copy.deepcopy(pair.sparse).bfloat16()(x)
        assert y.dtype == torch.bfloat16
        assert torch.allclose(y.float(), pair.dense(x.float()), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_back_to_dense_is_exact(case: LinearCase) -> None:
    """The dense layer made of a block-sparse one has the masked weights, bit for bit."""
    pair = case.pair()
    dense = pair.sparse.to_dense()
    assert isinstance(dense, nn.Linear)
    assert torch.equal(dense.weight, pair.dense.weight) and torch.equal(dense.bias, pair.dense.bias)


def test_back_to_dense_keeps_the_activation() -> None:
    """An activation of the layer becomes a module behind the dense one."""
    pair = LINEAR[0].pair(activation="gelu")
    x = torch.randn(3, 37)
    assert close(pair.sparse.to_dense()(x), pair.sparse(x))


def test_a_mask_of_blocks_keeps_whole_blocks() -> None:
    """A mask of blocks, in stored rows, keeps all weights of those blocks."""
    dense = nn.Linear(8, 32, bias=False)
    kept = torch.tensor([[True, False], [False, True]])
    back = BlockSparseLinear.from_dense(dense, kept, 16, 4).to_dense()
    expected = dense.weight * kept.repeat_interleave(16, 0).repeat_interleave(4, 1)
    assert torch.equal(back.get_parameter("weight"), expected)


def test_making_a_layer_leaves_the_dense_one_alone() -> None:
    """Training the block-sparse layer changes nothing of the layer it was made of."""
    dense = nn.Linear(8, 16)
    before = copy.deepcopy(dense.state_dict())
    layer = BlockSparseLinear.from_dense(dense, torch.rand(16, 8) < 0.5, 16, 1)
    layer(torch.randn(4, 8)).sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_frozen_weights_stay_frozen() -> None:
    """What needs no gradient in the dense layer needs none in the block-sparse one."""
    dense = nn.Linear(8, 16).requires_grad_(False)
    layer = BlockSparseLinear.from_dense(dense, torch.rand(16, 8) < 0.5, 16, 1)
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_state_is_saved_and_loaded_as_tensors_alone() -> None:
    """A state dict passes through torch.load(weights_only=True) and rebuilds the layer, pattern included."""
    case = LINEAR[1]
    layer, other = case.pair(transposed=True).sparse, case.pair(transposed=True).sparse
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    if state["values"].shape != other.values.shape:
        other = copy.deepcopy(layer)
        other.values.data.zero_()
    other.load_state_dict(state)
    x = torch.randn(4, 64)
    assert other.pattern == layer.pattern
    assert torch.equal(other(x), layer(x))


def test_a_layer_is_copied_and_pickled() -> None:
    """Copies of a layer compute what it computes."""
    layer = LINEAR[1].pair().sparse
    x = torch.randn(4, 64)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


def test_training_reaches_the_values() -> None:
    """A few steps of an ordinary optimizer lower the loss."""
    layer = LINEAR[1].pair(activation="relu").sparse
    x, target = torch.randn(32, 64), torch.rand(32, 100)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("backend", [DENSE, DENSE_ONEDNN], ids=lambda backend: backend.name)
def test_dense_backends_unpack_once_until_the_values_change(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacked weight is kept between calls, made anew after a step or a loaded state, and never out of date."""
    if backend.available():
        pytest.skip(backend.available())
    calls = []

    def counted(packed: Packed) -> Tensor:
        calls.append(packed)
        return unpack(packed)

    monkeypatch.setattr(dense_backend, "unpack", counted)
    layer, x = LINEAR[0].pair(backend).sparse, torch.randn(3, 37)
    forget()
    bias = layer.get_parameter("bias")
    first = layer(x)
    with torch.inference_mode():
        layer(x)
    assert len(calls) == 1
    with torch.no_grad():
        layer.values.mul_(2)
        assert close(layer(x) - bias, 2 * (first - bias))
    assert len(calls) == 2
    state = {name: torch.zeros_like(each) if name == "values" else each for name, each in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert close(layer(x), bias.expand(3, -1))
    assert len(calls) == 3


def test_dense_backends_keep_nothing_of_layers_that_are_gone() -> None:
    """The unpacked weight dies with the layer."""
    forget()
    layer = LINEAR[0].pair(DENSE).sparse
    layer(torch.randn(3, 37))
    assert len(dense_backend._kept) == 1
    del layer
    assert len(dense_backend._kept) == 0


def test_backends_are_changed_on_a_layer() -> None:
    """The same layer computes the same by another backend."""
    layer, x = LINEAR[1].pair().sparse, torch.randn(5, 64)
    assert layer.backend == ROWLOOP
    y = layer(x)
    assert layer.use(DENSE).backend == DENSE
    assert close(layer(x), y)


def test_an_input_of_another_width_or_type_is_refused() -> None:
    """The message says what was expected."""
    layer = LINEAR[1].pair().sparse
    with pytest.raises(ValueError, match="Expected an input that meets 64 columns. Got 63"):
        layer(torch.randn(4, 63))
    with pytest.raises(ValueError, match="Expected x of torch.float32"):
        layer(torch.randn(4, 64, dtype=torch.float64))


def test_an_unknown_activation_is_refused() -> None:
    """Only activations that kernels know are taken."""
    with pytest.raises(ValueError, match="Expected an activation in"):
        BlockSparseLinear.from_dense(nn.Linear(4, 16), torch.ones(16, 4).bool(), 16, 1, activation="tanh")  # type: ignore[arg-type]


def test_onednn_refuses_types_it_does_not_multiply() -> None:
    """The packed dense backend hands nothing to another one."""
    if DENSE_ONEDNN.available():
        pytest.skip(DENSE_ONEDNN.available())
    layer = LINEAR[0].pair(DENSE_ONEDNN).sparse.double()
    with pytest.raises(ValueError, match="Expected float32 or bfloat16"):
        layer(torch.randn(2, 37, dtype=torch.float64))
