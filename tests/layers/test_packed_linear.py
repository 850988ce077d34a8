"""PackedLinear is nn.Linear in everything but speed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from structprune.layers import packed_linear
from structprune.layers.onednn import missing
from structprune.layers.packed_linear import PackedLinear

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "runs here")


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the list of weights that are packed from now on."""
    found: list[Tensor] = []
    pack = packed_linear.packed_weight

    def noted(weight: Tensor) -> Tensor:
        found.append(weight)
        return pack(weight)

    monkeypatch.setattr(packed_linear, "packed_weight", noted)
    return found


def pair(bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, PackedLinear]:
    """Return a layer and its packed form with the same parameters."""
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias, dtype=dtype).eval()
    return plain, PackedLinear.from_linear(plain)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (2, 3, 48), (2, 2, 2, 48)])
def test_outputs_are_those_of_linear(bias: bool, shape: tuple[int, ...], packings: list[Tensor]) -> None:
    """For any number of leading dimensions, and the packed product is what computed them."""
    plain, fast = pair(bias)
    x = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    assert len(packings) == 1


def test_inputs_of_any_layout() -> None:
    """Transposed inputs are multiplied as they read."""
    plain, fast = pair()
    x = torch.randn(48, 9).t()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)


def test_parameters_are_shared_and_named_as_before() -> None:
    """The very tensors, under the very names: optimizers and state dicts do not notice."""
    plain, fast = pair()
    assert fast.weight is plain.weight and fast.bias is plain.bias
    assert list(fast.state_dict()) == ["weight", "bias"]
    fast.load_state_dict(nn.Linear(48, 80).state_dict())


def test_gradients_are_those_of_linear(packings: list[Tensor]) -> None:
    """Nothing is packed where gradients are wanted."""
    plain, fast = pair()
    x = torch.randn(5, 48, requires_grad=True)
    grads = [torch.autograd.grad(layer(x).square().sum(), [x, layer.weight, layer.bias]) for layer in (plain, fast)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    assert not packings


def change_in_place(layer: PackedLinear) -> None:
    """Write as optimizers do."""
    with torch.no_grad():
        layer.weight.mul_(2)


def change_by_state(layer: PackedLinear) -> None:
    """Load other weights."""
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})


def change_parameter(layer: PackedLinear) -> None:
    """Put another parameter there."""
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def change_data(layer: PackedLinear) -> None:
    """Put other memory under the parameter, twice, so that the first could be used again."""
    for _ in range(2):
        layer.weight.data = layer.weight.data * 2


def change_unseen_and_forget(layer: PackedLinear) -> None:
    """Write where torch does not count, and say so."""
    layer.weight.data.mul_(2)
    layer.forget()


def change_unseen_in_training(layer: PackedLinear) -> None:
    """Write where torch does not count, in training mode."""
    layer.train()
    layer.weight.data.mul_(2)
    layer.eval()


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_state,
        change_parameter,
        change_data,
        change_unseen_and_forget,
        change_unseen_in_training,
    ],
)
def test_changed_weights_are_packed_again(change: Callable[[PackedLinear], None]) -> None:
    """Whichever way they were changed."""
    _, fast = pair()
    x = torch.randn(5, 48)
    with torch.no_grad():
        fast(x)
        change(fast)
        torch.testing.assert_close(fast(x), nn.functional.linear(x, fast.weight, fast.bias), rtol=1e-5, atol=1e-5)


def test_equal_weights_are_packed_once(packings: list[Tensor]) -> None:
    """However often the layer is called."""
    _, fast = pair()
    with torch.no_grad():
        for _ in range(3):
            fast(torch.randn(5, 48))
    assert len(packings) == 1


def test_copies_and_files_hold_no_packed_weight() -> None:
    """And compute the same, bit for bit; a copy's weight is its own."""
    _, fast = pair()
    x = torch.randn(5, 48)
    with torch.no_grad():
        y = fast(x)
        twin = copy.deepcopy(fast)
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (twin, loaded):
            assert type(other) is PackedLinear and other._kept is None
            assert torch.equal(other(x), y)
        twin.weight.zero_()
        assert torch.equal(fast(x), y) and not torch.equal(twin(x), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_left_to_linear(dtype: torch.dtype, packings: list[Tensor]) -> None:
    """Those that oneDNN's operator does not multiply here."""
    plain, fast = pair(dtype=dtype)
    x = torch.randn(5, 48, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))
    assert not packings


def test_a_layer_moved_to_another_type_follows(packings: list[Tensor]) -> None:
    """From float32 to float64 and back."""
    plain, fast = pair()
    x = torch.randn(5, 48)
    with torch.no_grad():
        y = fast(x)
        assert fast.double()(x.double()).dtype == torch.float64
        assert torch.equal(fast.float()(x), y)


def test_autocast_is_left_to_linear(packings: list[Tensor]) -> None:
    """Which computes in bfloat16."""
    plain, fast = pair()
    x = torch.randn(5, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16 and torch.equal(fast(x), plain(x))
    assert not packings


@pytest.mark.parametrize("shape", [(48,), (0, 48)])
def test_vectors_and_empty_batches_are_left_to_linear(shape: tuple[int, ...], packings: list[Tensor]) -> None:
    """They have no matrix product."""
    plain, fast = pair()
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))
    assert not packings


def test_export_sees_a_linear_layer() -> None:
    """The program holds aten.linear and no operator of oneDNN; it computes the same."""
    plain, fast = pair()
    x = torch.randn(5, 48)
    with torch.no_grad():
        fast(x)
        for strict in (False, True):
            program = torch.export.export(fast, (x,), strict=strict)
            targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
            assert targets == ["aten.linear.default"]
            assert torch.equal(program.module()(x), plain(x))


def test_torch_compile_reads_it_whole() -> None:
    """Without a break in the graph."""
    plain, fast = pair()
    x = torch.randn(5, 48)
    with torch.no_grad():
        fast(x)
        compiled = torch.compile(fast, fullgraph=True, backend="eager")
        assert torch.equal(compiled(x), plain(x))


def test_vmap_and_functional_calls() -> None:
    """Tensors that stand for others are left to F.linear."""
    plain, fast = pair()
    x = torch.randn(4, 5, 48)
    weights = torch.randn(3, 80, 48)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(fast)(x), plain(x), rtol=1e-5, atol=1e-5)
        several = torch.vmap(lambda w: torch.func.functional_call(fast, {"weight": w}, x))(weights)
        torch.testing.assert_close(several[1], nn.functional.linear(x, weights[1], fast.bias), rtol=1e-5, atol=1e-5)


def test_recorders_see_operators_they_know() -> None:
    """Counting modes are given plain operators."""

    class Seen(TorchDispatchMode):
        """Notes the operators."""

        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            self.names.append(str(func))
            assert callable(func)
            return func(*args, **(kwargs or {}))

    _, fast = pair()
    with torch.no_grad(), Seen() as seen:
        fast(torch.randn(5, 48))
    assert seen.names and not any("mkldnn" in name for name in seen.names)


def test_inference_mode() -> None:
    """Weights made there have no count of changes and are never kept; ordinary ones are."""
    plain, fast = pair()
    x = torch.randn(5, 48)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
        born = PackedLinear(48, 80).eval()
        torch.testing.assert_close(born(x), nn.functional.linear(x, born.weight, born.bias))
        assert born._kept is None
