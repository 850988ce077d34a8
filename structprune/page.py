"""What the pages of structprune are made of: sections, tables, and plots as inline SVG that follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AFTER",
    "BEFORE",
    "GOOD",
    "INK",
    "MARK",
    "SOFT",
    "alert",
    "assembled",
    "bars",
    "bullets",
    "legend",
    "new_figure",
    "pairs",
    "panels",
    "paragraph",
    "section",
    "shortened",
    "svg",
    "table",
    "tile",
]

INCHES = 10.4  # width of a full plot; a point is a pixel of the page

# Colours in a plot are stand-ins, replaced by the page's variables so that one SVG does in light and in dark.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
BEFORE, AFTER, MARK, GOOD = "#040404", "#050505", "#060606", "#070707"
VARIABLES = {
    INK: "ink", SOFT: "soft", LINE: "line", BEFORE: "before", AFTER: "after", MARK: "mark", GOOD: "good"
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may have dollar signs
    "svg.hashsalt": "structprune",  # equal reports give equal pages
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": INK,
}


def assembled(title: str, subtitle: str, tiles: Iterable[str], sections: Iterable[str], banner: str = "") -> str:
    """Return the whole page that needs no network; title and subtitle are plain text, the others are HTML."""
    template = Template(files("structprune").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        banner=banner,
        tiles="\n".join(tiles),
        sections="\n".join(section for section in sections if section),
    )


def tile(number: str, what: str, more: str) -> str:
    """Return one large number with what it is."""
    return f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span><span>{escape(more)}</span></div>'


def section(title: str, *parts: str) -> str:
    """Return a titled part of the page, nothing if it has no content."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str) -> str:
    """Return a paragraph of explanation."""
    return f'<p class="soft">{escape(text)}</p>' if text else ""


def legend(*entries: tuple[str, str]) -> str:
    """Return coloured keys, as pairs (variable, text)."""
    keys = (
        f'<span class="entry"><span class="key" style="background: var(--{name})"></span>{escape(text)}</span> '
        for name, text in entries
    )
    return f'<p class="soft">{"".join(keys)}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls where it is too wide; the first column names the row, the others are numbers."""
    cells = "".join(f"<th{' class=number' if index else ''}>{escape(name)}</th>" for index, name in enumerate(head))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{' class=number' if index else ''}>{escape(cell)}</td>" for index, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<tr>{cells}</tr>\n{body}\n</table></div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of named facts."""
    body = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in rows)
    return f'<div class="scroll"><table>\n{body}\n</table></div>' if body else ""


def alert(text: str) -> str:
    """Return a paragraph that must not be missed."""
    return f'<p class="bad"><b>{escape(text)}</b></p>'


def bullets(texts: Iterable[str]) -> str:
    """Return a list, nothing if it is empty."""
    items = "\n".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>\n{items}\n</ul>" if items else ""


def svg(figure: Figure, label: str) -> str:
    """Return a figure as an inline SVG in the page's colours, described for those who cannot see it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    # Ids must differ between the plots of a page.
    prefix = re.sub(r"\W+", "-", label)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return f'<div class="plot">{text}</div>'


@contextmanager
def new_figure(height: float) -> Iterator[Figure]:
    """Give an empty figure of the page's width, its height in inches, to be drawn and saved in the page's style."""
    # Here and not above: loading matplotlib takes half a second that only those who want the page should wait for.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.03)
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(INCHES, height), layout=layout)


@contextmanager
def panels(count: int) -> Iterator[tuple[Figure, Sequence[Any]]]:
    """Give a figure with so many small plots, four in a row, as pair (figure, plots)."""
    columns = min(4, count)
    lines = -(-count // columns)
    with new_figure(0.3 + 1.75 * lines) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for plot in grid[:count]:
            plot.grid(True)
            plot.locator_params(nbins=4)
            plot.tick_params(labelsize=8, labelcolor=SOFT)
        for plot in grid[count:]:
            plot.set_visible(False)
        yield figure, list(grid[:count])


def bars(axes: Any, names: Sequence[str]) -> None:
    """Prepare horizontal bars, one row per name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def shortened(name: str, length: int = 40) -> str:
    """Return a name cut in its middle to fit beside a plot."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"
