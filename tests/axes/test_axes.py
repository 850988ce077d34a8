"""What is found in networks: the axes, their members and names, and why the rest is pinned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structprune.structures import ChannelAxis, Structures, channels
from tests.agreement import compiled_equals_masked
from tests.cases import BY_NAME
from tests.generated import random_selection
from tests.laws import channels_of


def sizes(name: str) -> dict[str, int]:
    """Axes of a case by name."""
    return {axis.name: axis.size for axis in channels_of(BY_NAME[name]).axes}


def reasons(structures: Structures) -> dict[tuple[str, int], str]:
    """Reasons by tensor and dimension."""
    return {(pinned.tensor, pinned.dim): pinned.reason for pinned in structures.pinned}


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def between(function, inputs: int = 6, outputs: int = 6) -> tuple[nn.Module, Tensor]:
    """linear, function, linear, with two examples."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, inputs), Function(function), nn.Linear(outputs, 3)).eval(), torch.randn(2, 4)


def test_residual_streams_are_one_axis():
    """Everything added together loses the same channels."""
    first, second = ("stem.0", "block1.conv1", "block2.conv1"), ("block3.conv1", "block3.conv2", "block4.conv1")
    assert sizes("residual") == dict.fromkeys(first, 8) | dict.fromkeys(second, 16)


def test_zero_padded_shortcuts_split_the_stream():
    """With padded shortcuts the middle channels come from before; the stream keeps one axis for them."""
    found = sizes("residual_padded")
    assert found["stem.0"] == 8


def test_concatenated_parts_are_axes_of_their_own():
    """Each part is named by the convolution that makes it."""
    assert sizes("concat") == {"stem": 8, "convs.0": 4, "convs.1": 4, "convs.2": 4, "transition.0": 10}


def test_halves_are_named_by_their_rows():
    """Two axes of one module are told apart by where their rows start."""
    assert {"first.0[0:6]": 6, "first.0[6:12]": 6}.items() <= sizes("chunk").items()


def test_grouped_convolutions_lose_groups_or_channels_of_every_group():
    """The groups, the inputs in a group and the outputs in a group are three axes."""
    assert {"reduce.0[0:12:3]": 4, "reduce.0[0:3]": 3, "grouped.0": 3}.items() <= sizes("grouped").items()


def test_group_norm_loses_whole_groups():
    """The channels inside a group are normalised together."""
    assert sizes("unet") == {"down": 4, "deep": 3, "up": 8, "merge": 2}


def test_fused_attention_has_heads_and_features():
    """The 3 of a fused projection stays; heads and features per head go."""
    assert sizes("fused_attention") == {"qkv[0:32:8]": 4, "qkv[0:8]": 8, "mlp.fc1": 24}


def test_torch_attention_has_heads_and_features():
    """torch's own attention merges the batch with the heads; the features per head can go all the same."""
    assert sizes("torch_attention") == {"embed": 16, "attention[0:16:4]": 4, "attention[0:4]": 4}


def test_rotary_features_are_tied_in_pairs_with_their_frequencies():
    """A feature goes with its partner, with its frequency, and in queries and keys alike."""
    structures = channels_of(BY_NAME["rotary_grouped_query"])
    axis = next(axis for axis in structures.axes if axis.name == "q[0:3]")
    assert isinstance(axis, ChannelAxis)
    assert {member.tensor for member in axis.members} == {"q.weight", "k.weight", "inv_freq"}


def test_every_axis_can_shrink():
    """No axis has a single width."""
    for name in BY_NAME:
        for axis in channels_of(BY_NAME[name]).axes:
            assert len(axis.levels) > 1


def test_every_dimension_is_in_an_axis_or_pinned_with_a_reason():
    """But for kernel taps, which nobody looks for."""
    for name in ("residual", "torch_encoder", "rotary_grouped_query", "lstm", "recommender"):
        structures = channels_of(BY_NAME[name])
        known = set(reasons(structures))
        for axis in structures.axes:
            assert isinstance(axis, ChannelAxis)
            known |= {(member.tensor, member.dim) for member in axis.members}
        for tensor, shape in structures.shapes.items():
            dims = range(len(shape)) if len(shape) < 4 else (0, 1)
            assert all((tensor, dim) in known or shape[dim] == 1 for dim in dims), tensor


def test_kernel_taps_are_not_listed():
    """They are no candidates."""
    assert not [p for p in channels_of(BY_NAME["plain"]).pinned if p.tensor.startswith("conv") and p.dim > 1]


def test_layer_norm_pins_with_its_name():
    """Directly, or through the operator that ties to it."""
    found = reasons(channels_of(BY_NAME["attention"]))
    assert found["embed.weight", 0] == "is normalised over by layer_norm in 'norm'"
    assert found["proj.weight", 0] == "is tied by add to a dimension that is normalised over by layer_norm in 'norm'"


def test_outputs_are_never_cut():
    """Neither directly nor through a tie."""
    model, example = between(lambda x: x)
    assert reasons(channels(model, example))["2.weight", 0] == "is an output of the network"


def test_a_single_entry_that_is_picked_stays():
    """x[:, :1] broadcast over x: without its first entry there would be nothing to multiply by."""
    model, example = between(lambda x: (x[:, :1] * x).tanh())
    structures = channels(model, example)
    assert [(axis.name, axis.size) for axis in structures.axes] == [("0", 5)]
    compiled_equals_masked(model, example, structures, random_selection(structures, 0.4, 0))


def test_a_single_entry_that_is_squeezed_out_stays():
    """Of three projections the one that is used stays; the idle two, and features of all three, may go."""
    model, example = between(lambda x: x.view(-1, 3, 4)[:, 2:3].squeeze(1).tanh(), 12, 4)
    structures = channels(model, example)
    assert [(axis.name, axis.size) for axis in structures.axes] == [("0[0:8:4]", 2), ("0[0:4]", 4)]
    selection = random_selection(structures, 0.5, 0)
    selection[:2] = True, False
    compiled_equals_masked(model, example, structures, selection)


def test_divisors_that_masking_makes_zero_stay():
    """0 / 0 is not a number: the masked network must be defined."""
    structures = channels(*between(lambda x: x / x.detach()))
    assert not structures.n
    assert "would be zero where it is masked, yet divided by" in reasons(structures)["0.weight", 0]
    assert channels(*between(lambda x: x / (1 + x.detach() ** 2))).n == 6


def test_two_activations_that_are_not_zero_when_masked_cannot_be_contracted():
    """sigmoid(q) sigmoid(k)^T sums 1/4 for every masked feature; with one linear factor it sums 0."""

    def pairs(x: Tensor, function) -> Tensor:
        first, second = x.view(-1, 2, 5, 1).unbind(1)
        return (first.transpose(1, 2).sigmoid() @ function(second)).flatten(1)

    both = channels(*between(lambda x: pairs(x, torch.sigmoid), 10, 1))
    assert not both.n
    one = channels(*between(lambda x: pairs(x, lambda y: y), 10, 1))
    assert [axis.size for axis in one.axes] == [5]


def test_widths_in_multiples_leave_narrow_axes_alone():
    """An axis that has no smaller multiple is pinned, and says so."""
    model, example = BY_NAME["mlp"].make()
    structures = channels(model, example, multiple_of=16)
    assert not structures.n
    assert reasons(structures)["fc2.weight", 0] == "has 12 entries, and widths are multiples of 16"
    assert [axis.levels.tolist() for axis in channels(model, example, multiple_of=8).axes] == [[8, 16], [8, 12]]


def test_tied_weights_are_one_tensor():
    """The embedding that is also the output layer keeps its vocabulary, and its features count once."""
    structures = channels_of(BY_NAME["tied_embeddings"])
    assert "lm_head.weight" not in structures.shapes
    assert reasons(structures)["tokens.weight", 0].startswith("is the vocabulary")


def test_views_of_one_memory_stay_whole():
    """Two parameters that share part of their storage cannot be cut apart."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    memory = torch.randn(2, 6, 6)
    model[2].weight = nn.Parameter(memory[0])
    model[2].extra = nn.Parameter(memory.view(-1)[:36].view(6, 6).t())
    structures = channels(model, torch.randn(2, 4))
    assert not structures.n
    assert "views of the same memory" in reasons(structures)["2.weight", 0]


class Positions(nn.Module):
    """A learned table of nine positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


def test_positions_beyond_the_example_are_kept():
    """Rows of a position table that the example does not reach take part in nothing, and stay."""
    structures = channels(nn.Sequential(nn.Linear(4, 6), Positions(), nn.Linear(6, 3)), torch.randn(2, 5, 4))
    assert [axis.name for axis in structures.axes] == ["0"]
    assert ("1.table", 0) in reasons(structures)


def test_instance_norm_and_weighted_pooling():
    """Channels with their own statistics can go."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8), nn.Conv2d(8, 6, 3)),
        *(Function(lambda x: F.adaptive_max_pool2d(x, 1).flatten(1)), nn.Linear(6, 3)),
    ).eval()
    example = torch.randn(2, 3, 8, 8)
    structures = channels(model, example)
    assert [axis.size for axis in structures.axes] == [8, 6]
    compiled_equals_masked(model, example, structures, random_selection(structures, 0.5, 0))
