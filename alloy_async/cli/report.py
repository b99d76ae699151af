"""What ``send`` tells while it runs and at its end: for a person, or for a machine."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from io import FileIO
from typing import Any, Protocol

from rich.console import Console

from .. import Statistics
from .delivery import Observer
from .outcomes import as_object, outcome_table, progress_bar, sentence
from .terminal import say, warn

__all__ = ["JsonReport", "Report", "Summary", "TextReport"]


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        lines: how many were read that are not blank.
        books: what became of the events that were accepted.
        choice: the choice that held; None when there was none.
        stopped: how many of them were left over at the end; those on the wire may have arrived.
        first_stopped: the line of the first of them.
        interrupted: whether a signal ended it.
    """

    lines: int
    books: Statistics
    choice: str | None
    stopped: int
    first_stopped: int | None
    interrupted: bool


class Report(Observer, Protocol):
    """Hears how each line ends, and how the run does."""

    def pause(self) -> None:
        """Leave the terminal to a question."""

    def resume(self) -> None:
        """Go on showing."""

    def finish(self, summary: Summary) -> None:
        """Tell how the run ended."""


class TextReport:
    """Findings and a bar on standard error, the outcomes on standard output.

    Args:
        source: what is read; its size is the length of the bar, if it has one.
    """

    def __init__(self, source: FileIO) -> None:
        self._console = Console(stderr=True)
        self._progress = progress_bar(self._console)
        self._task = self._progress.add_task("Sending", total=_size(source))

    def ended(self, size: int) -> None:
        """Move the bar."""
        self._progress.advance(self._task, size)

    def problem(self, line: int, reason: str) -> None:
        """Say which line was not delivered, and why."""
        warn(f"line {line}: {reason}", self._console)

    def note(self, line: int, remark: str) -> None:
        """Say what the edge had to say about a line that it took."""
        warn(f"line {line}: delivered, but the edge says: {remark}", self._console)

    def pause(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def resume(self) -> None:
        """Show the bar."""
        self._progress.start()

    def finish(self, summary: Summary) -> None:
        """Print a table on a terminal, one line in a pipe."""
        self._progress.stop()
        for remark in _remarks(summary):
            warn(remark, self._console)
        if sys.stdout.isatty():
            before = {"lines": summary.lines, "unusable": summary.lines - summary.books.accepted}
            Console().print(outcome_table("What became of the lines", summary.books, before=before))
        else:
            say(sentence(summary.lines, summary.books))


class JsonReport:
    """One JSON object a line on standard output."""

    def __init__(self) -> None:
        self._listened_to = True

    def ended(self, size: int) -> None:
        """Say nothing."""

    def problem(self, line: int, reason: str) -> None:
        """Write which line was not delivered, and why."""
        self._write({"type": "problem", "line": line, "reason": reason})

    def note(self, line: int, remark: str) -> None:
        """Write what the edge had to say about a line that it took."""
        self._write({"type": "note", "line": line, "remark": remark})

    def pause(self) -> None:
        """Do nothing."""

    def resume(self) -> None:
        """Do nothing."""

    def finish(self, summary: Summary) -> None:
        """Write the outcomes."""
        about = {"choice": summary.choice, "interrupted": summary.interrupted, "stopped": summary.stopped}
        self._write({"type": "summary"} | as_object(summary.lines, summary.books) | about)

    def _write(self, record: dict[str, Any]) -> None:
        if not self._listened_to:
            return
        try:
            sys.stdout.write(json.dumps(record) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader went away; the events are under way all the same. What Python flushes at exit goes nowhere.
            self._listened_to = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _size(source: FileIO) -> int | None:
    status = os.fstat(source.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _remarks(summary: Summary) -> list[str]:
    remarks = []
    if summary.interrupted:
        remarks.append("Lines that were not read before the interruption are not counted.")
    if summary.stopped:
        remarks.append(
            f"{summary.stopped} lines were left over, the first is line {summary.first_stopped}; "
            "they were not sent, or the answer did not come in time."
        )
    if summary.choice == "none":
        remarks.append('The choice is "none": nothing was sent.')
    return remarks
