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


_AT_ONCE = 256
"""Identifiers that are made together: the operating system is asked once for all of them."""

_PATTERN = b"xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx "
"""Source: RFC 9562, section 5.4: any hex digit where x stands, where y stands one of the variant 10."""

_VARIANT = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)

_ids: list[str] = []
"""The next identifiers."""


class RandomIds:
    """UUIDv4 from the operating system's randomness.

    Written out because uuid.uuid4() takes more than five times as long, and each event needs one.
    """

    def __call__(self) -> str:
        """Return a UUIDv4 as text."""
        try:
            return _ids.pop()
        except IndexError:
            first, *others = _more_ids()
        _ids.extend(others)
        return first


def _more_ids() -> list[str]:
    """Fill in many at once, column by column: to put together one after the other takes three times as long."""
    text = bytearray(_PATTERN * _AT_ONCE)
    digits = os.urandom(16 * _AT_ONCE).hex().encode()
    for column, kind in enumerate(_PATTERN.decode()):
        if kind in "xy":
            drawn, digits = digits[:_AT_ONCE], digits[_AT_ONCE:]
            text[column :: len(_PATTERN)] = drawn if kind == "x" else drawn.translate(_VARIANT)
    return text.decode().split()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.clear)  # the parent will use them; no two events share an id


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
