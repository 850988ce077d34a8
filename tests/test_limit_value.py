"""The pruning limit as a value: its screen of text, what it says of a budget, and that files give it back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structprune.errors import FileFormatError
from structprune.limit import Interval, LayerCurve, Limit, LimitEstimate

PAPER = LimitEstimate(
    "paper",
    Interval(0.119, 0.128, 0.137),
    308,
    308,
    False,
    "Where the paper's formula meets itself: comparable to its tables, neither a lower nor an upper bound.",
    ((0.1, 0.004), (0.128, 0.0023), (0.5, 0.0001)),
)
TRUST = LimitEstimate(
    "trust 0.05",
    Interval(0.11, 0.12, 0.13),
    295,
    295,
    False,
    "Smallest size at which moving the survivors by at most 0.05 of their length keeps the quadratic model's loss "
    "within epsilon: an estimate of what retraining reaches, and no bound.",
    ((0.1, 0.003), (0.12, 0.0023), (1.0, 0.0)),
)
CONSTRUCTIVE = LimitEstimate(
    "constructive",
    Interval(0.161, 0.161, 0.161),
    396,
    396,
    True,
    "The loss was measured at this size after one update of the survivors: an upper bound on the data given.",
    ((0.1, 0.02), (0.161, 0.0021), (0.5, -0.0001), (1.0, 0.0)),
)


def small_limit(**changes: Any) -> Limit:
    """Return a limit with everything in it but warnings and layers."""
    limit = Limit(
        model_name="Digits",
        kind="weights",
        weights=2462,
        free=110,
        dead=240,
        structures=2352,
        loss=0.0931,
        examples=1297,
        epsilon=Interval(0.0019, 0.0023, 0.0027),
        epsilon_source="standard deviation of the 11 batches' losses",
        curvature="ggn",
        estimates=(PAPER, TRUST, CONSTRUCTIVE),
        dimension=Interval(440.0, 456.8, 472.0),
        stationarity=1.2e-5,
        movement=1.4,
        model_error=0.31,
        memory_bytes=1_234_567,
        notes=("Survivors are chosen by magnitude.",),
        seed=7,
        seconds=12.3,
        versions={"torch": "2.13.0"},
    )
    return dataclasses.replace(limit, **changes)


def crowded_limit() -> Limit:
    """Return a limit with more to say than a screen holds."""
    estimates = tuple(dataclasses.replace(TRUST, name=f"trust {tau}", meaning="long words " * 40) for tau in range(9))
    return small_limit(
        estimates=estimates,
        warnings=("the network is not at rest " * 20, "epsilon is below the noise " * 9),
        notes=("a remark " * 50,) * 5,
    )


# ---------------------------------------------------------------- one screen


@pytest.mark.parametrize(
    "limit", [small_limit(), crowded_limit(), small_limit(warnings=("one thing",) * 40), small_limit(kind="channels")]
)
def test_the_text_is_one_screen(limit: Limit) -> None:
    """At most 24 lines of 112 characters, however much there is to say; every estimate keeps its line."""
    lines = str(limit).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 112
    assert len(limit.warnings) > 20 or all(
        any(f"({one.name.removeprefix('trust ')})" in line or one.name in line for line in lines)
        for one in limit.estimates
    )


def test_the_text_tells_every_estimate_with_its_interval_and_what_it_is() -> None:
    """Name, per cent, interval and meaning stand beside each other; an exact value has no interval."""
    text = str(small_limit())
    for part in ("keep at least", "95 % interval", "12.8 % [11.9, 13.7]  Where the paper's formula meets itself"):
        assert part in text
    assert "trust-region (0.05)  12.0 % [11.0, 13.0]" in text
    assert "constructive         16.1 %  " in text
    assert " ".join(TRUST.meaning.split()[-6:]) in " ".join(text.split())


def test_the_text_tells_what_the_numbers_rest_on() -> None:
    """Loss, epsilon with its source, counts of weights, curvature, checks, seed and time."""
    text = str(small_limit())
    for part in (
        "0.0931 nats on 1,297 examples",
        "epsilon = 0.00230 [0.00190, 0.00270] nats",
        "2,462, of which 110 are always kept and 2,352 can go; 240 are zero without influence",
        "ggn; the loss feels about 457 [440, 472] directions",
        "1.20e-05 nats (0.0052 epsilon)",
        "1.4 of their length",
        "0.31 epsilon",
        "12.3 s, seed 7, largest Lanczos basis 1.23 MB",
        "chosen by magnitude",
    ):
        assert part in " ".join(text.split())


def test_what_was_not_looked_at_is_not_told() -> None:
    """Without checks, memory or notes their lines are missing."""
    text = str(small_limit(stationarity=None, movement=None, model_error=None, memory_bytes=0, notes=(), dead=0))
    assert not any(word in text for word in ("checks", "note", "basis", "None", "zero without"))


def test_warnings_stand_out_at_the_top() -> None:
    """Each line of a warning begins with an exclamation mark, below the title and before any number."""
    lines = str(small_limit(warnings=("not stationary " * 12, "few batches"))).splitlines()
    marked = [index for index, line in enumerate(lines) if line.startswith("! ")]
    assert marked == list(range(1, 1 + len(marked))) and len(marked) >= 3
    assert sum("WARNING" in line for line in lines) == 2
    assert not any(line.startswith("!") for line in str(small_limit()).splitlines())


def test_explanations_give_way_before_warnings() -> None:
    """Where a screen is too small, a warning is whole and a meaning is cut."""
    warning = (
        "not stationary: one second-order step lowers the loss by more than a tenth of epsilon, train it to the end"
    )
    text = str(small_limit(warnings=(warning,) * 3, estimates=(PAPER, TRUST, CONSTRUCTIVE) * 2))
    assert " ".join(text.replace("\n! ", " ").split()).count("train it to the end") == 3
    assert " ..." in text


def test_the_words_are_the_houses() -> None:
    """Kept fractions are of something named, and never a "pruning ratio"."""
    text = str(small_limit()) + small_limit().sentence(0.5)
    assert "ratio" not in text and "keep" in text


def test_structures_are_named() -> None:
    """Channels and N:M entries are called so."""
    assert "by channels" in str(small_limit(kind="channels", structures=48))
    assert "2,352 can go in 48 channels" in str(small_limit(kind="channels", structures=48))
    assert "by N:M entries" in str(small_limit(kind="nm"))


def test_sparsity_is_what_keep_fraction_leaves() -> None:
    """The interval turns round."""
    assert TRUST.sparsity == Interval(1 - 0.13, 1 - 0.12, 1 - 0.11)


# ---------------------------------------------------------------- what a budget means


def test_below_the_trust_interval_expect_loss() -> None:
    """The whole sentence, as a user reads it."""
    assert small_limit().sentence(0.08) == (
        "your budget keeps 8.00 % of the weights; the trust-region (0.05) limit is 12.0 % [11.0, 13.0]: expect loss"
    )


@pytest.mark.parametrize("kept", [0.11, 0.115, 0.12, 0.13])
def test_inside_the_trust_interval_it_is_at_the_limit(kept: float) -> None:
    """The interval's ends belong to it."""
    assert small_limit().sentence(kept).endswith("the trust-region (0.05) limit is 12.0 % [11.0, 13.0]: at the limit")


def test_above_the_trust_interval_it_is_likely_within_reach() -> None:
    """Though nothing of that size was measured."""
    sentence = small_limit().sentence(0.15)
    assert "trust-region (0.05)" in sentence and sentence.endswith(": likely within reach")


@pytest.mark.parametrize("kept", [0.161, 0.5, 1.0])
def test_from_the_constructive_size_on_it_is_within_reach(kept: float) -> None:
    """The measurement speaks, with its own number."""
    assert (
        small_limit()
        .sentence(kept)
        .endswith("the constructive limit is 16.1 %: within reach, the loss was measured there")
    )


def test_a_measurement_beats_an_estimate() -> None:
    """Where a network smaller than the trust-region limit was measured to work, nobody is told to expect loss."""
    measured = dataclasses.replace(CONSTRUCTIVE, keep_fraction=Interval(0.05, 0.05, 0.05))
    assert "within reach, the loss was measured" in small_limit(estimates=(TRUST, measured)).sentence(0.06)


def test_without_a_trust_region_the_measurement_is_the_mark() -> None:
    """Below it nothing is known to work, and more is not said."""
    limit = small_limit(estimates=(PAPER, CONSTRUCTIVE))
    assert limit.sentence(0.1).endswith("the constructive limit is 16.1 %: beyond what was measured to work")
    assert limit.sentence(0.3).endswith("within reach, the loss was measured there")


def test_formulas_alone_promise_nothing() -> None:
    """The paper's value says when to expect loss, and never that a budget is within reach."""
    limit = small_limit(estimates=(PAPER,))
    assert limit.sentence(0.1).endswith("the paper limit is 12.8 % [11.9, 13.7]: expect loss")
    assert limit.sentence(0.128).endswith(": at the limit")
    assert limit.sentence(0.9).endswith(": not ruled out, but this estimate says little of what is in reach")


def test_the_first_trust_radius_judges() -> None:
    """Of several radii, the one that was asked for first."""
    wide = dataclasses.replace(TRUST, name="trust 0.1", keep_fraction=Interval(0.05, 0.06, 0.07))
    assert "(0.05)" in small_limit(estimates=(TRUST, wide)).sentence(0.1)
    assert "(0.1)" in small_limit(estimates=(wide, TRUST)).sentence(0.1)


def test_less_than_what_is_always_kept_is_told() -> None:
    """110 of 2,462 weights are never removed."""
    assert small_limit().sentence(0.01).endswith(": expect loss, 4.47 % are always kept there")


def test_warnings_put_the_sentence_in_doubt() -> None:
    """Whatever an estimate's verdict is; a measured loss is no matter of doubt."""
    limit = small_limit(warnings=("not stationary",))
    for kept in (0.01, 0.12, 0.15):
        assert limit.sentence(kept).endswith(" (in doubt, see the limit's warnings)")
    assert limit.sentence(0.5) == small_limit().sentence(0.5)


def test_the_limit_of_one_kind_is_no_verdict_on_another() -> None:
    """Channels need more than single weights: what is too little for these is too little for those, no more."""
    limit = small_limit()
    assert limit.sentence(0.08, "channels").endswith("[11.0, 13.0]: expect loss")
    for kept in (0.12, 0.15, 0.5):
        assert limit.sentence(kept, "channels").endswith(
            "no verdict, that is the limit of single weights and the budget removes channels"
        )
    assert limit.sentence(0.5, "weights") == limit.sentence(0.5)
    assert "no verdict" in small_limit(kind="channels").sentence(0.08, "weights")


@pytest.mark.parametrize("kept", [-0.1, 1.1, 8.0, math.nan])
def test_a_fraction_is_between_0_and_1(kept: float) -> None:
    """Per cent and counts are refused."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        small_limit().sentence(kept)


# ---------------------------------------------------------------- the value and its file


def test_estimates_are_found_by_name() -> None:
    """One that was not asked for is a KeyError that says which were."""
    assert small_limit()["trust 0.05"] is TRUST
    with pytest.raises(KeyError, match="generic"):
        small_limit()["generic"]


def test_a_limit_has_an_estimate() -> None:
    """One without any would have nothing to say."""
    with pytest.raises(ValueError, match="at least one estimate"):
        small_limit(estimates=())


@pytest.mark.parametrize(
    "limit",
    [
        small_limit(),
        crowded_limit(),
        small_limit(layers=(LayerCurve("fc", 640, ((64, 0.5), (640, 0.0))),), stationarity=None),
        small_limit(dimension=Interval(0.0, 1.0, math.inf), seconds=math.inf),
    ],
)
def test_json_gives_the_limit_back(limit: Limit, tmp_path: Path) -> None:
    """From the text and from the file, with numbers that JSON lacks; the file is strict JSON."""
    limit.save(tmp_path / "limit.json")
    json.loads(limit.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for source in (limit.to_json(), tmp_path / "limit.json", str(tmp_path / "limit.json")):
        assert Limit.from_json(source) == limit


def test_numbers_of_numpy_are_saved_as_numbers() -> None:
    """Counts and curves that come out of arrays need no conversion."""
    curve = ((np.float64(0.1), np.float32(0.5)),)
    estimate = dataclasses.replace(TRUST, kept=np.int64(295), curve=curve)  # type: ignore[arg-type]
    assert Limit.from_json(small_limit(estimates=(estimate,)).to_json()) == small_limit(estimates=(estimate,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (small_limit().to_json()[:200], "broken JSON"),
        ('{"format": "structprune-report", "format_version": 1}', "Got something else"),
        ("[1, 2]", "Got something else"),
        (small_limit().to_json().replace('"format_version": 1', '"format_version": 99'), "Got 99"),
        (small_limit().to_json().replace('"weights"', '"wights"', 2), "Got others"),
        (small_limit().to_json().replace('"meaning"', '"sense"'), "Got others"),
    ],
)
def test_truncated_and_foreign_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    """The message names the file and what is wrong with it."""
    path = tmp_path / "limit.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=f"Expected .*limit.json.*{words}"):
        Limit.from_json(path)
