"""Making unreadable what was erased, and trying again while others keep it from being done."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from .._clock import Cancellable, Clock
from .._database import Database
from ._tables import NEVER, Rewritten, sweep

__all__ = ["Sweeper"]

_SOONEST = 1.0
_LATEST = 30.0
"""Seconds until it is tried again, the first time and at most; each time it is twice as long."""

_REST = 10.0
"""Times as long as the last attempt took, until the next one begins: erasures that come close together share one, and
rewriting a large file takes a tenth of its thread at most."""

_logger = logging.getLogger("alloy_async")


class Sweeper:
    """Sweeps a file when asked to, and again until it is done.

    Args:
        database: the file.
        clock: where time comes from.

    Attributes:
        rewritten: when it has rewritten the file.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.rewritten: Rewritten = NEVER
        self._delay = _SOONEST
        self._rests_until = clock.monotonic()
        self._unswept = False
        self._closed = False
        self._again: Cancellable | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin again after ``aclose``, perhaps with another file."""
        self._closed = False
        self.rewritten = NEVER

    async def sweep(self) -> None:
        """Sweep what was erased; where that has to wait, arrange for it."""
        self._unswept = True
        rest = self._rests_until - self._clock.monotonic()
        if rest > 0.0:
            self._arrange(rest)
        elif not await self._try():
            self._arrange(self._delay)
            self._delay = min(_LATEST, self._delay * 2)

    def soon(self) -> None:
        """Sweep what another worker may have erased and could not sweep."""
        self._arrange(_SOONEST)

    async def aclose(self) -> None:
        """Try once more what is not done; the file remembers it for the next worker."""
        self._closed = True
        self._call_off()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._call_off()
        if self._unswept:
            await self._try()

    async def _try(self) -> bool:
        """Sweep, and return whether nothing is left to do."""
        started = self._clock.monotonic()
        try:
            swept = await self._database.run(lambda file: sweep(file, self.rewritten), create=False)
        except FileNotFoundError:
            self._unswept = False
            return True
        except (sqlite3.Error, OSError) as error:
            _logger.info("%s: erased, and to be overwritten later: %s", self._database.path, error)
            return False
        finally:
            ended = self._clock.monotonic()
            self._rests_until = ended + _REST * (ended - started)
        if swept.problem:
            _logger.info("%s: erased, and to be overwritten later: %s", self._database.path, swept.problem)
        self.rewritten = swept.rewritten
        self._unswept = not swept.done
        return swept.done

    def _arrange(self, delay: float) -> None:
        self._call_off()
        if self._closed:
            return
        self._again = self._clock.call_later(delay, self._start)

    def _call_off(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _start(self) -> None:
        self._again = None
        if self._task is None or self._task.done():
            self._task = asyncio.Task(self.sweep(), name="alloy-outbox-sweep")
