"""What autograd, torch.compile, torch.export, autocast and FSDP make of the operators."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from structprune.layers import DENSE, Activation, Backend, BlockSparseLinear, Packed, RowLoop, operator, remember
from structprune.layers.backend import backend_named, require
from structprune.layers.layer import BlockSparseLayer
from tests.layers.layer_cases import ACTIVATIONS, BACKENDS, ConvCase, LinearCase, close

LINEAR = LinearCase(40, 20, 16, 4, ordered=True, kept=0.2)
CONV = ConvCase((3, 3), (2, 2), (1, 1), 16, 4, (6, 7), ordered=True)


def linear_arguments(layer: BlockSparseLayer, x: Tensor, activation: Activation) -> tuple[Any, ...]:
    """Return what the linear operator takes."""
    lists = (layer.columns, layer.starts, layer.order)
    return (x, layer.values, *lists, layer.bias, layer.outputs, activation, layer.transposed, layer.backend.name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_linear_operator_passes_torchs_checks(backend: Backend, activation: Activation) -> None:
    """Schema, fake tensors, autograd registration and compilation agree with the operator."""
    layer = LINEAR.pair(backend, activation, transposed=activation == "none").sparse
    x = torch.randn(3, 5, 20, requires_grad=True)
    torch.library.opcheck(operator.grouped_linear, linear_arguments(layer, x, activation))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convolution_operator_passes_torchs_checks(backend: Backend) -> None:
    """Schema, fake tensors, autograd registration and compilation agree with the operator."""
    layer = CONV.pair(backend).sparse
    x = torch.randn(2, 8, 6, 7, requires_grad=True)
    lists, geometry = (layer.columns, layer.starts, layer.order), layer.geometry
    shape = (geometry.kernel, geometry.stride, geometry.padding)
    torch.library.opcheck(
        operator.grouped_conv2d, (x, layer.values, *lists, layer.bias, layer.outputs, *shape, "relu", backend.name)
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("transposed", [True, False])
def test_linear_gradients_are_finite_differences(activation: Activation, transposed: bool) -> None:
    """In double precision the gradients pass gradcheck."""
    layer = LINEAR.pair(activation=activation, transposed=transposed).sparse.double()
    x = torch.randn(2, 20, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        packed = Packed(values, layer.columns, layer.starts, layer.order, layer.outputs, layer.inputs)
        return operator.linear(x, packed, bias, activation, backend="rowloop", transposed=layer.transposed)

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convolution_gradients_are_finite_differences(activation: Activation) -> None:
    """In double precision the gradients pass gradcheck."""
    layer = CONV.pair(activation=activation).sparse.double()
    x = torch.randn(1, 8, 4, 5, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        packed = Packed(values, layer.columns, layer.starts, layer.order, layer.outputs, layer.inputs)
        return operator.conv2d(x, packed, layer.geometry, bias, activation, backend="rowloop")

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


def test_a_second_derivative_is_refused() -> None:
    """None is defined, and torch says so instead of returning a wrong one."""
    layer = LINEAR.pair().sparse
    x = torch.randn(2, 20, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_layers_compile_whole_with_dynamic_sizes(name: str, training: bool) -> None:
    """One graph without breaks serves several batch sizes, forwards and backwards."""
    torch.compiler.reset()
    layer: BlockSparseLayer = (LINEAR if name == "linear" else CONV).pair(activation="gelu").sparse.train(training)
    size = (20,) if name == "linear" else (8, 6, 7)
    graphs = []

    def compiler(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    whole = torch.compile(layer, fullgraph=True, dynamic=True, backend=compiler)
    traced = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 7, 9):
        x = torch.randn(batch, *size, requires_grad=True)
        expected = layer(x)
        known = torch.autograd.grad(expected.square().sum(), [x, layer.values])
        for compiled in (whole, traced):
            y = compiled(x)
            assert close(y, expected)
            found = torch.autograd.grad(y.square().sum(), [x, layer.values])
            assert all(close(one, other) for one, other in zip(found, known, strict=True))
    assert len(graphs) == 1


def test_an_exported_program_is_saved_and_serves_other_batch_sizes() -> None:
    """torch.export with a dynamic batch, written and read back, computes what the layers compute."""
    model = nn.Sequential(CONV.pair(activation="relu").sparse, nn.Flatten(1, 2), nn.Flatten(1), nn.LazyLinear(20))
    model.append(LINEAR.pair(DENSE, activation="gelu").sparse)
    model.eval()
    x = torch.randn(2, 8, 6, 7)
    model(x)
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (2, 11):
        x = torch.randn(size, 8, 6, 7)
        assert close(loaded(x), model(x))


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=["linear", "conv"])
def test_autocast_computes_in_its_type_and_leaves_gradients_in_theirs(case: LinearCase | ConvCase) -> None:
    """Under autocast outputs are bfloat16, as torch's own layers', and parameters get float32 gradients."""
    layer: BlockSparseLayer = case.pair().sparse
    x = torch.randn((4, 20) if case is LINEAR else (4, 8, 6, 7), requires_grad=True)
    for module in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert layer.values.grad is not None and layer.values.grad.dtype == torch.float32


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """Start a process group of this process alone."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_training_is_ordinary_training() -> None:
    """FSDP2 shards the values like any parameter: same outputs, gradients and steps."""
    plain = nn.Sequential(LINEAR.pair().sparse, nn.ReLU(), nn.Linear(40, 3))
    sharded = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(sharded[0], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    x = torch.randn(5, 20)
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(x).square().sum().backward()
        optimizer.step()
    assert close(sharded(x), plain(x))
    values = sharded[0].get_parameter("values")
    assert isinstance(values, DTensor)
    assert close(values.full_tensor(), plain[0].get_parameter("values"))


def test_backends_are_found_by_name_and_compare_by_value() -> None:
    """An equal backend is the same one; a name that nobody gave is refused."""
    assert remember(RowLoop()) == "rowloop"
    assert backend_named("rowloop") == RowLoop()
    with pytest.raises(ValueError, match="Expected a backend among .* Got 'nobody'"):
        backend_named("nobody")


@dataclass(frozen=True)
class Absent(Backend):
    """A backend of a machine that is not here, under a name that is taken."""

    name = "rowloop"

    def available(self) -> str:
        """Return that it is not here."""
        return "needs another machine."

    def linear(self, *_: Any) -> Tensor:
        """Return nothing of use."""
        raise AssertionError

    def conv2d(self, *_: Any) -> Tensor:
        """Return nothing of use."""
        raise AssertionError


def test_a_backend_that_cannot_run_or_takes_a_name_is_refused() -> None:
    """The reason is given when the layer is told to use it, not at the first call."""
    with pytest.raises(ValueError, match="needs another machine"):
        LINEAR.pair(Absent())
    with pytest.raises(ValueError, match="needs another machine"):
        require(Absent())
    with pytest.raises(ValueError, match="Expected one backend named 'rowloop'"):
        remember(Absent())


def test_a_layer_prints_its_sizes() -> None:
    """The printed layer tells sizes, blocks and backend."""
    dense = nn.Linear(20, 40)
    kept = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    text = repr(BlockSparseLinear.from_dense(dense, kept, 16, 4))
    assert "20 -> 40, blocks 16x4, kept 40 of 60 columns" in text and "backend=rowloop" in text
