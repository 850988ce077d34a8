"""Facts of the published training: the schedule's clock, crops and flips, resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.limits.datasets import Pixels
from benchmarks.limits.networks import Perceptron, initialise
from benchmarks.limits.recipe import Recipe, Schedule, augmented, train

CPU = torch.device("cpu")
SHORT = Recipe(rate=0.1, penalty=1e-3, epochs=4, batch=8, shape="cosine")


def rates(recipe: Recipe, batches: int, epochs: int) -> list[float]:
    """Return the rate that each batch is trained with."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.rate)
    schedule = Schedule(optimiser, recipe, batches)
    found = []
    for epoch in range(epochs):
        for _ in range(batches):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.advance(epoch)
    return found


def test_the_published_clock_counts_batches() -> None:
    """After 3 epochs of 50 batches the schedule has stepped 150 times, not 3."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Schedule(optimiser, Recipe(1.0, 0.0, shape="multistep"), 50)
    for epoch in range(3):
        for _ in range(50):
            optimiser.step()
            schedule.advance(epoch)
    assert [part.last_epoch for part in schedule.parts] == [150]


def test_by_batch_multistep_ends_after_160_batches() -> None:
    """Milestones meant as epochs pass as batches where no warm-up overwrites them."""
    found = rates(Recipe(1.0, 0.0, shape="multistep"), batches=100, epochs=2)
    assert found[59] == 1.0 and found[60] == 0.5 and found[120] == 0.25 and found[160:] == [0.125] * 40


def test_a_warm_up_undoes_milestones_that_pass_within_it() -> None:
    """With the published clock and 5 epochs of warm-up, AlexNet's multistep schedule is a constant rate."""
    found = rates(Recipe(0.01, 0.0, warm_up=5, shape="multistep"), batches=100, epochs=6)
    assert found[:3] == pytest.approx([0.0, 0.01 / 500, 0.02 / 500])
    assert found[500:] == pytest.approx([0.01] * 100)


def test_by_batch_cosine_swings_with_a_period_of_two_epoch_counts() -> None:
    """T_max = 20 epochs, counted in batches: zero at 20 batches, the full rate again at 40."""
    found = rates(Recipe(1.0, 0.0, shape="cosine", epochs=20), batches=30, epochs=3)
    assert found[20] == pytest.approx(0, abs=1e-12) and found[40] == pytest.approx(1) and found[80] == pytest.approx(1)


def test_by_epoch_cosine_falls_once() -> None:
    """As the settings read: one half period over all epochs, the rate constant within an epoch after the warm-up."""
    recipe = Recipe(1.0, 0.0, warm_up=2, shape="cosine", epochs=10, by_batch=False)
    found = rates(recipe, batches=5, epochs=10)
    assert found[0] == 0 and found == pytest.approx(sorted(found[:10]) + sorted(found[10:], reverse=True), abs=0.06)
    assert len(set(found[10:])) == 8 and found[-1] < 0.03


def test_an_unknown_shape_is_refused() -> None:
    """The message lists the shapes there are."""
    with pytest.raises(ValueError, match="constant, multistep, cosine"):
        Recipe(0.1, 0.0, shape="step")


def test_crops_are_windows_of_the_padded_image() -> None:
    """Every augmented image, flipped back or not, is found in the padded original."""
    pixels = torch.randint(1, 256, (6, 2, 5, 7), dtype=torch.uint8)
    found = augmented(pixels, torch.Generator().manual_seed(3))
    padded = nn.functional.pad(pixels, (4,) * 4)
    assert found.shape == pixels.shape and found.dtype == torch.uint8
    for before, after in zip(padded, found, strict=True):
        windows = [before[:, y : y + 5, x : x + 7] for y in range(9) for x in range(9)]
        assert any(torch.equal(window, image) for window in windows for image in (after, after.flip(-1)))


def made_pixels() -> Pixels:
    """Return 20 images whose brightness tells their class."""
    targets = torch.arange(20) % 2
    images = (targets * 200).to(torch.uint8).view(-1, 1, 1, 1) + torch.randint(0, 50, (20, 1, 4, 4), dtype=torch.uint8)
    return Pixels(images, targets)


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    """Two epochs, an interruption and two more give the weights of four."""
    pixels = made_pixels()

    def started() -> nn.Module:
        return initialise(Perceptron((16, 6, 2)), 0)

    whole = train(started(), pixels, SHORT, tmp_path / "whole", device=CPU, seed=1)

    class Interrupted(Exception):
        pass

    model = started()
    calls = 0

    def stop(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # in the third epoch of three batches
            raise Interrupted

    model.register_forward_pre_hook(stop)
    with pytest.raises(Interrupted):
        train(model, pixels, SHORT, tmp_path / "parts", device=CPU, seed=1)
    again = train(started(), pixels, SHORT, tmp_path / "parts", device=CPU, seed=1)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    """Going on with another penalty would mix two recipes."""
    model = initialise(Perceptron((16, 6, 2)), 0)
    train(model, made_pixels(), replace(SHORT, epochs=1), tmp_path, device=CPU, seed=0)
    with pytest.raises(ValueError, match="Expected a checkpoint of these settings"):
        train(model, made_pixels(), replace(SHORT, epochs=1, penalty=0.1), tmp_path, device=CPU, seed=0)


def test_the_penalty_shrinks_all_parameters(tmp_path: Path) -> None:
    """A larger penalty leaves a smaller l1 norm, biases included."""

    def norm(penalty: float) -> float:
        model = initialise(Perceptron((16, 6, 2)), 0)
        recipe = replace(SHORT, penalty=penalty, shape="constant", rate=0.02, epochs=10)
        train(model, made_pixels(), recipe, tmp_path / str(penalty), device=CPU, seed=0)
        return sum(float(parameter.detach().abs().sum()) for parameter in model.parameters())

    assert norm(0.05) < 0.8 * norm(0.0)
