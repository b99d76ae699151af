"""How the outcomes of a run are shown: a table, a sentence, JSON, and a bar while it lasts."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from .. import Statistics

__all__ = ["adds_up", "as_object", "outcome_table", "progress_bar", "sentence"]

MEANINGS = {
    "delivered": "taken by the edge",
    "refused": "no consent; never sent",
    "withheld": "stopped by on_before_event_send",
    "expired": "waited too long for consent",
    "overflowed": "found no room to wait in",
    "cancelled": "withdrawn before they were sent",
    "failed": "not taken by the edge, or left over at the end",
    "kept": "on disk, for the next start",
    "open": "not ended",
}
"""The columns into which accepted events fall, in the order of the books."""

_ALWAYS_SHOWN = frozenset({"delivered", "refused", "failed"})


def adds_up(books: Statistics) -> bool:
    """Return whether every accepted event stands in exactly one column."""
    return books.accepted == sum(_columns(books).values())


def outcome_table(
    title: str,
    books: Statistics,
    *,
    before: dict[str, int] | None = None,
    after: dict[str, int] | None = None,
) -> Table:
    """Return one table of what became of the events.

    Args:
        title: plain text.
        books: the events that were accepted.
        before: further rows above the books, name to count.
        after: further rows below them.
    """
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", style="bold", no_wrap=True)
    table.add_column("", style="dim")
    for name, count in (before or {}).items():
        table.add_row(name, str(count), "")
    table.add_row("accepted", str(books.accepted), "", end_section=True)
    _add_columns(table, books)
    for name, count in (after or {}).items():
        table.add_row(name, str(count), "")
    return table


def sentence(lines: int, books: Statistics) -> str:
    """Return the outcomes in one line, for logs and pipes.

    Args:
        lines: how many were read.
        books: the events that were accepted.
    """
    counts = {"delivered": books.delivered, "unusable": lines - books.accepted}
    counts |= {name: count for name, count in _columns(books).items() if name != "delivered"}
    parts = [f"{count} {name}" for name, count in counts.items() if count or name == "delivered"]
    return f"{lines} {'line' if lines == 1 else 'lines'}: {', '.join(parts)}"


def as_object(lines: int, books: Statistics) -> dict[str, int]:
    """Return the outcomes for machines: lines = unusable + accepted, accepted = the sum of the others."""
    return {"lines": lines, "unusable": lines - books.accepted, "accepted": books.accepted} | _columns(books)


def progress_bar(console: Console) -> Progress:
    """Return a bar that shows itself on a terminal only."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        # Not console.is_terminal, which FORCE_COLOR makes true in a pipe.
        disable=not console.file.isatty(),
    )


def _columns(books: Statistics) -> dict[str, int]:
    counts = asdict(books) | {"open": books.open}
    return {name: counts[name] for name in MEANINGS}


def _add_columns(table: Table, books: Statistics) -> None:
    shown = {name: count for name, count in _columns(books).items() if count or name in _ALWAYS_SHOWN}
    for place, (name, count) in enumerate(shown.items(), start=1):
        sign = "=" if place == 1 else "+"
        table.add_row(f"{sign} {name}", str(count), MEANINGS[name], end_section=place == len(shown))
