"""Where time and identifiers come from, so that a test can bring its own."""

from __future__ import annotations

import asyncio
import os
import time as _time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Cancellable", "Clock", "Ids", "RandomIds", "SystemClock", "iso_timestamp"]


class Cancellable(Protocol):
    """A call that was arranged for later."""

    def cancel(self) -> None:
        """Call it off; harmless when it has run."""


class Clock(Protocol):
    """What the library asks of time."""

    def time(self) -> float:
        """Return the wall clock, in seconds since 1970 (UTC)."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> Cancellable:
        """Arrange a call in ``delay`` seconds, on the running event loop."""
        ...


class SystemClock:
    """The machine's own clock."""

    time = staticmethod(_time.time)
    monotonic = staticmethod(_time.monotonic)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Cancellable:
        """Arrange a call in ``delay`` seconds, on the running event loop."""
        return asyncio.get_running_loop().call_later(delay, callback)


class Ids(Protocol):
    """What the library asks for identifiers."""

    def __call__(self) -> str:
        """Return a UUIDv4 as text."""
        ...


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

_digits: list[str] = []
"""Random hex digits for the next identifiers, 32 each: the operating system is asked once for many."""


class RandomIds:
    """UUIDv4 from the operating system's randomness."""

    def __call__(self) -> str:
        """Return a UUIDv4 as text.

        Written out because uuid.uuid4() takes five times as long, and each event needs one.

        Source: RFC 9562, section 5.4: version 4 in the 13th hex digit, variant 10 in the 17th.
        """
        try:
            text = _digits.pop()
        except IndexError:
            text = _more_digits()
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"


def _more_digits() -> str:
    digits = os.urandom(16 * 256).hex()
    _digits.extend(digits[start : start + 32] for start in range(32, len(digits), 32))
    return digits[:32]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_digits.clear)  # the parent will use them; no two events share an id


_last_second: tuple[int, str] = (0, "1970-01-01T00:00:00")
_last_moment: tuple[int, str] = (0, "1970-01-01T00:00:00.000Z")


def iso_timestamp(seconds: float) -> str:
    """Write a moment as RFC 3339 in UTC with milliseconds, for example ``2026-11-23T15:20:48.830Z``.

    Args:
        seconds: since 1970 (UTC).
    """
    global _last_moment  # noqa: PLW0603 - in a busy process dozens of events share a millisecond
    moment = int(seconds * 1000)
    last, text = _last_moment
    if moment != last:
        whole, milliseconds = divmod(moment, 1000)
        text = f"{_second(whole)}.{milliseconds:03d}Z"
        _last_moment = (moment, text)
    return text


def _second(whole: int) -> str:
    global _last_second  # noqa: PLW0603 - and in a calm one still a second
    last, text = _last_second
    if whole != last:
        text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _last_second = (whole, text)
    return text
