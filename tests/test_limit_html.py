"""The page of a pruning limit: it needs nothing from outside, has every number, and bears whatever a limit holds."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from structprune.limit import Interval, LayerCurve, Limit
from structprune.limit_html import LAYERS, POINTS, page, thinned
from tests.test_limit_value import CONSTRUCTIVE, PAPER, TRUST, crowded_limit, small_limit
from tests.test_report import Page


def layered(count: int) -> Limit:
    """Return a limit with so many layer curves."""
    layers = tuple(
        LayerCurve(f"block{index}.conv", 100 + index, ((10, 0.5), (50, 0.01), (100, 0.0))) for index in range(count)
    )
    return small_limit(curvature="layerwise", layers=layers)


def read_page(limit: Limit, asked: float | None = None) -> tuple[str, Page]:
    """Make a limit's page and parse it."""
    text = page(limit, asked)
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    return text, parsed


def words_of(limit: Limit, asked: float | None = None) -> str:
    """Return what a reader sees."""
    return " ".join(" ".join(read_page(limit, asked)[1].words).split())


@pytest.mark.parametrize("limit", [small_limit(), crowded_limit(), layered(3)])
@pytest.mark.parametrize("asked", [None, 0.08])
def test_the_page_needs_no_network(limit: Limit, asked: float | None) -> None:
    """Nothing is fetched, tags are balanced, ids unique, and no plot has a colour of its own."""
    text, parsed = read_page(limit, asked)
    assert parsed.fetched == []
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(parsed.ids) == len(set(parsed.ids))
    plots = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink)" in plots and not re.search(r"(fill|stroke): #", plots)
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert all(text.count(f"--{name}:") == 2 for name in used)


def test_the_page_has_every_estimate_and_what_it_rests_on() -> None:
    """Intervals, sparsity, meanings, epsilon, checks, notes, seed and versions."""
    words = words_of(small_limit())
    for part in (
        "12.8 % [11.9, 13.7]",
        "88.0 % [87.0, 89.0]",
        PAPER.meaning,
        TRUST.meaning,
        "upper, on these data",
        "0.00230 [0.00190, 0.00270] nats, standard deviation",
        "457 [440, 472]",
        "240 that are zero",
        "0.31 epsilon",
        "Survivors are chosen by magnitude.",
        "seed 7",
        "2.13.0",
    ):
        assert part in words
    assert "ratio" not in words


def test_the_plot_has_a_line_per_estimator() -> None:
    """Each is named in the plot, beside the band of epsilon."""
    text, _ = read_page(small_limit())
    assert 'aria-label="Rise of the loss over the kept fraction, and the limits"' in text
    plot = text[text.index("<svg") : text.index("</svg>")]
    for name in ("paper", "trust-region (0.05)", "constructive", "rise of the loss (nats)", "kept fraction"):
        assert name in plot
    assert "mathdefault" not in plot


def test_warnings_stand_above_all_numbers() -> None:
    """They are the first thing after the title, and there is no such place without any."""
    words = words_of(small_limit(warnings=("the network is not at rest",)))
    assert words.index("The network is not at rest") < words.index("12.8 %")
    assert "rely" not in words_of(small_limit())


def test_the_budget_asked_for_is_judged_and_drawn() -> None:
    """Its sentence is there, and its line in the plot; without one there is neither."""
    text, _ = read_page(small_limit(), 0.08)
    words = words_of(small_limit(), 0.08)
    assert "Your budget keeps 8.00 % of the weights; the trust-region (0.05) limit is 12.0 % [11.0, 13.0]" in words
    assert "var(--mark)" in text[text.index("<svg") : text.index("</svg>")]
    without, _ = read_page(small_limit())
    assert "our budget" not in without and "var(--mark)" not in without
    with pytest.raises(ValueError, match="between 0 and 1"):
        page(small_limit(), 8.0)


def test_kept_structures_are_counted_where_they_are_not_weights() -> None:
    """Channels have a column of their own, single weights have not."""
    assert "kept channels" in words_of(small_limit(kind="channels"))
    assert "kept single weights" not in words_of(small_limit())


def test_long_networks_fit_the_page() -> None:
    """The largest layers are drawn, the others counted."""
    words = words_of(layered(LAYERS + 6))
    assert f"The {LAYERS} largest layers; 6 more are in the JSON" in words
    assert "block29.conv" in words and "block0.conv" not in words
    assert "Layers" not in words_of(small_limit())


def test_equal_limits_give_equal_pages() -> None:
    """No time and no random id is in the page."""
    assert page(small_limit(), 0.1) == page(small_limit(), 0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"estimates": (dataclasses.replace(TRUST, curve=()),)},
        {"estimates": (dataclasses.replace(PAPER, curve=((0.1, math.inf), (0.2, math.nan), (1.0, 0.0))),)},
        {"estimates": (dataclasses.replace(CONSTRUCTIVE, curve=((0.5, -0.1), (1.0, 0.0))),)},
        {"estimates": (dataclasses.replace(TRUST, keep_fraction=Interval(0.0, 0.0, 0.0)),)},
        {"estimates": (dataclasses.replace(TRUST, keep_fraction=Interval(1.0, 1.0, 1.0)),)},
        {"epsilon": Interval(0.0, 0.0, 0.0)},
        {"layers": (LayerCurve("a", 1, ()), LayerCurve("b", 1, ((0, math.inf), (1, 0.0))))},
        {
            "stationarity": None,
            "movement": None,
            "model_error": None,
            "dimension": Interval(math.nan, math.nan, math.nan),
        },
    ],
)
@pytest.mark.parametrize("asked", [None, 0.0, 1.0])
@pytest.mark.filterwarnings("error")
def test_any_limit_makes_a_page(changes: dict[str, Any], asked: float | None) -> None:
    """Empty curves, losses that are no numbers or fall, limits at either end, an epsilon of nothing."""
    read_page(small_limit(**changes), asked)


def test_what_users_name_is_shown_and_not_run() -> None:
    """Names and notes with markup in them, or with what matplotlib takes for formulas, are text on the page."""
    name = "<script>alert(1)</script> $x & ${title} $\\frac$"
    limit = small_limit(
        model_name=name,
        notes=(name,),
        warnings=(name,),
        epsilon_source=name,
        layers=(LayerCurve(name, 3, ((1, 1.0), (3, 0.0))),),
        estimates=(dataclasses.replace(TRUST, meaning=name),),
    )
    _, parsed = read_page(limit)
    assert parsed.fetched == []
    assert "".join(parsed.words).count(name) >= 5


def test_long_curves_are_thinned() -> None:
    """Both ends stay, and no more points than can be seen."""
    points = [(index / 10_000, 1.0 - index / 10_000) for index in range(10_001)]
    kept = thinned(points)
    assert len(kept) == POINTS and kept[0] == points[0] and kept[-1] == points[-1]
    assert thinned(points[:5]) == points[:5]
