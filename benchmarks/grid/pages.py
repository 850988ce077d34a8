"""Tables, the same in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Page", "Part", "Table", "as_html", "as_markdown"]

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}"
    "th,td{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:right}"
    "th:first-child,td:first-child{text-align:left}img{max-width:100%}.warning{background:#fff3d6;padding:.6rem 1rem}"
)


@dataclass(frozen=True)
class Table:
    """Headings and lines of cells; the first column holds words, the others numbers."""

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """A section of a page.

    Attributes
    ----------
    title
        Its heading.
    content
        Sentences, tables, and pictures as (what they show, bytes of the PNG).
    """

    title: str
    content: tuple[str | Table | tuple[str, bytes], ...]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes
    ----------
    title
        Its heading.
    warning
        What must be said before anything else; empty for nothing.
    parts
        Its sections.
    """

    title: str
    warning: str
    parts: tuple[Part, ...]


def as_markdown(page: Page, pictures: str) -> tuple[str, dict[str, bytes]]:
    """Return the page in Markdown, and its pictures by file name; names begin with ``pictures``."""
    lines = [f"# {page.title}", ""]
    lines += [f"**{page.warning}**", ""] if page.warning else []
    files: dict[str, bytes] = {}
    for part in page.parts:
        lines += [f"## {part.title}", ""]
        for item in part.content:
            if isinstance(item, Table):
                lines += [*grid(item), ""]
            elif isinstance(item, str):
                lines += [item, ""]
            else:
                name = f"{pictures}-{len(files) + 1}.png"
                files[name] = item[1]
                lines += [f"![{item[0]}]({name})", ""]
    return "\n".join(lines), files


def grid(table: Table) -> list[str]:
    """Return a table's lines in Markdown."""
    marks = ("---", *("---:" for _ in table.headings[1:]))
    return ["| " + " | ".join(line) + " |" for line in (table.headings, marks, *table.lines)]


def as_html(page: Page, data_url: Sequence[str]) -> str:
    """Return the page as one HTML file; ``data_url`` are its pictures in order, as URLs."""
    urls = iter(data_url)
    body = [f"<h1>{escape(page.title)}</h1>"]
    body += [f'<p class="warning"><strong>{escape(page.warning)}</strong></p>'] if page.warning else []
    for part in page.parts:
        body.append(f"<h2>{escape(part.title)}</h2>")
        for item in part.content:
            if isinstance(item, Table):
                head = "".join(f"<th>{escape(cell)}</th>" for cell in item.headings)
                rows = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in item.lines)
                lines = "".join(f"<tr>{row}</tr>" for row in rows)
                body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>")
            elif isinstance(item, str):
                body.append(f"<p>{escape(item)}</p>")
            else:
                body.append(f'<img alt="{escape(item[0])}" src="{next(urls)}">')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
