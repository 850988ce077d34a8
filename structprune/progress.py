"""Progress of long work: phases of the straight line, and bars inside them. Silent unless a caller turns it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Phases", "track"]

T = TypeVar("T")
_display: ContextVar[Progress | None] = ContextVar("display", default=None)


class Phases:
    """Names what is being done, on standard error, and keeps the seconds that each phase took."""

    def __init__(self, visible: bool) -> None:
        self.visible = visible
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; while it runs, :func:`track` shows bars if progress is visible."""
        start = perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        # Into a file or pipe a bar that erases itself would leave blank lines.
        display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        token = _display.set(display if self.visible else None)
        try:
            if self.visible:
                with display:
                    display.add_task(name, total=None)
                    yield
            else:
                yield
        finally:
            _display.reset(token)
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield ``items``, showing a bar named ``what`` if a visible phase is under way."""
    display = _display.get()
    if display is None:
        yield from items
        return
    task = display.add_task(what, total=len(items))
    for item in items:
        yield item
        display.advance(task)
    display.remove_task(task)
