"""Ctrl-C and SIGTERM: the first ends a run in good order, the second at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, Self

__all__ = ["Interruption", "leave"]

# On Windows none: its loops take no signals, and Ctrl-C cancels the main task there.
_SIGNALS = () if sys.platform == "win32" else (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Listens for signals as long as its block runs, which must be inside of an event loop.

    Args:
        end: called at the first signal; ends the run in good order.
        clear_up: called at the second, before the process ends at once.
    """

    def __init__(self, *, end: Callable[[], object], clear_up: Callable[[], object]) -> None:
        self.signal: int | None = None
        self._end = end
        self._clear_up = clear_up

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended: 130 after Ctrl-C."""
        return 128 + (self.signal or 0)

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._heard, number)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    def _heard(self, number: int) -> None:
        if self.signal is None:
            self.signal = number
            self._end()
        else:
            self._clear_up()
            leave(128 + number)


def leave(status: int) -> NoReturn:
    """End the process without waiting for anything.

    A name look-up runs on a thread that the interpreter would wait for at exit, possibly for minutes.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
