"""What a person sees, and what a person is asked."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Literal

from rich.console import Console
from rich.text import Text

from .blocking import in_thread

__all__ = ["NoAnswer", "NoTerminal", "Terminal", "moment", "printable", "say", "warn"]

_ANSWERS: dict[str, Literal["all", "none"]] = {"y": "all", "yes": "all", "n": "none", "no": "none"}


class NoTerminal(Exception):
    """There is nobody to ask."""


class NoAnswer(Exception):
    """The person ended the input instead of answering."""


def moment(seconds: float) -> str:
    """Write seconds since 1970 as ISO 8601."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} seconds after 1970"


def printable(text: str) -> str:
    """Return a text without what a terminal would obey: escape sequences, line breaks, changes of direction."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def say(text: str, *, style: str = "") -> None:
    """Print a line for the person, on standard output; nothing in it is taken as markup."""
    _print(Console(), text, style)


def warn(text: str, console: Console | None = None) -> None:
    """Print a line on standard error; nothing in it is taken as markup."""
    _print(console or Console(stderr=True), text, "yellow")


def _print(console: Console, text: str, style: str) -> None:
    console.print(Text(printable(text), style=style), soft_wrap=True)


class Terminal:
    """The person in front of the program.

    Args:
        stdin_is_taken: whether standard input is the data; then the person is found by the process's own terminal.

    Raises:
        NoTerminal: there is none. A pipe is not asked: ``yes |`` is nobody's consent.
    """

    def __init__(self, *, stdin_is_taken: bool = False) -> None:
        if not stdin_is_taken and os.isatty(0):
            self._reads = 0
            self._writes = next((descriptor for descriptor in (2, 1) if os.isatty(descriptor)), 0)
        else:
            self._reads = self._writes = _open_own_terminal()

    async def ask(self, question: str) -> Literal["all", "none"]:
        """Ask until the answer is yes or no.

        Returns:
            "all" for yes, "none" for no.

        Raises:
            NoAnswer: the input ended.
        """
        while True:
            os.write(self._writes, f"{printable(question)} [y/n] ".encode(errors="replace"))
            try:
                answer = await in_thread(lambda: os.read(self._reads, 1_024))
            except OSError:
                answer = b""  # the terminal went away
            if not answer:
                os.write(self._writes, b"\n")
                raise NoAnswer
            choice = _ANSWERS.get(answer.decode(errors="replace").strip().lower())
            if choice is not None:
                return choice


def _open_own_terminal() -> int:
    try:
        return os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0))
    except OSError:
        raise NoTerminal from None
