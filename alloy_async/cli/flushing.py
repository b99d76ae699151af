"""One run of ``outbox flush``: from the stored choice to the summary."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from .. import Alloy, AlloyError, ConsentStoreError, Settings, Statistics
from ..hooks import Parked, Refused, Retrying
from ..outbox import Claimed, SQLiteOutbox
from ..stores import SQLiteStore, VisitorKey
from .interruption import Interruption, leave
from .outcomes import as_object, outcome_table
from .sending import CannotRun
from .terminal import say, warn
from .which_outbox import is_missing

__all__ = ["Flushing"]

GRACE = 2.0
"""Seconds for what is on the wire, once the time is over or Ctrl-C was pressed."""

EVERYTHING = 2**31


@dataclass(frozen=True, slots=True)
class _Left:
    """What is in the outbox afterwards.

    Attributes:
        held: by running workers.
        free: of no running worker.
        others: of other datastreams and organisations, whoever has them.
    """

    held: int
    free: int
    others: int


class _WatchedOutbox(SQLiteOutbox):
    """The outbox, which takes note when there is nothing left to take over."""

    def __init__(self, path: Path, visitor: VisitorKey) -> None:
        super().__init__(path)
        self._visitor = visitor
        self.changed = asyncio.Event()
        self.is_empty = False

    async def abandoned(self) -> Collection[VisitorKey]:
        """Return whose events there are; remember whether the visitor's are among them."""
        found = await super().abandoned()
        self.is_empty = self._visitor not in found
        self.changed.set()
        return found

    async def claim(self, visitors: Collection[VisitorKey], *, count: int, size: int) -> list[Claimed]:
        """Take over events; remember whether there were any."""
        claimed = await super().claim(visitors, count=count, size=size)
        self.is_empty = not claimed
        self.changed.set()
        return claimed


class Flushing:
    """Sends what belongs to no running worker.

    Args:
        file: of the outbox.
        options: for ``configure``.
        as_json: whether a machine reads the outcomes.

    Raises:
        ConfigurationError: an option cannot be used.
    """

    def __init__(self, file: Path, options: dict[str, Any], *, as_json: bool) -> None:
        self._file = file
        self._options = options
        self._settings = Settings.resolve(options)
        self._key = VisitorKey(self._settings.ims_org_id, self._settings.config_id)
        self._as_json = as_json
        self._lost_consent = False
        self._problem: AlloyError | None = None

    async def run(self, wait: float) -> int:
        """Send what can be sent.

        Args:
            wait: seconds after which what is not sent is left in the outbox.

        Returns:
            The exit status.

        Raises:
            CannotRun: the choice cannot be read.
            AlloyError: the instance cannot be configured.
        """
        if is_missing(self._file):
            self._finish(Statistics(), _Left(held=0, free=0, others=0))
            return 0
        choice = await self._load_choice()
        if choice != "all":
            self._finish(Statistics(), await self._look())
            kept = 'The stored choice is "none"' if choice == "none" else "No consent is stored"
            raise CannotRun(f"{kept} for {self._key.datastream} in {self._choices()}: nothing was sent.", 1)
        return await self._send(wait)

    async def _load_choice(self) -> str | None:
        async with aclosing(SQLiteStore(self._settings.state_dir)) as store:
            try:
                stored = await store.load_preference(self._key)
            except ConsentStoreError as error:
                raise CannotRun(f"{error} Nothing was sent.", 1) from None
        return None if stored is None or stored.expires_at <= time.time() else stored.purposes

    def _choices(self) -> Path:
        return SQLiteStore(self._settings.state_dir).path

    async def _send(self, wait: float) -> int:
        outbox = _WatchedOutbox(self._file, self._key)
        async with Alloy("flush") as alloy:
            await alloy.configure(
                **self._options,
                opt_in_enabled=True,
                outbox=outbox,
                when_outbox_fails="refuse",
                hooks=(lambda record: self._notice(record, outbox),),
            )
            task = asyncio.create_task(self._until_sent(alloy, outbox), name="alloy-flush")
            with Interruption(end=task.cancel, clear_up=_nothing) as interruption:
                done, _ = await asyncio.wait({task}, timeout=wait)
                task.cancel()
                books = await alloy.aclose(GRACE)
        left = await self._look()
        self._finish(books, left)
        if interruption.signal is not None:
            leave(interruption.exit_status)
        if not done:
            reason = f" The last attempt that failed: {self._problem}." if self._problem is not None else ""
            warn(f"Not finished in {wait:g} s; what is left stays in the outbox.{reason}")
        if self._lost_consent:
            warn("Meanwhile the visitor's consent has ended: the rest was not sent.")
        return 0 if books.delivered == books.accepted and not left.free else 1

    def _notice(self, record: object, outbox: _WatchedOutbox) -> None:
        """Hear of each moment; a hook."""
        if isinstance(record, Parked) or (isinstance(record, Refused) and record.by == "visitor"):
            self._lost_consent = True
        if isinstance(record, Retrying):
            self._problem = record.error
        outbox.changed.set()

    async def _until_sent(self, alloy: Alloy, outbox: _WatchedOutbox) -> None:
        """Wait until nothing is left to take over, and all that was taken has ended."""
        while not (outbox.is_empty or self._lost_consent):
            outbox.changed.clear()
            await outbox.changed.wait()
        await alloy.flush()

    async def _look(self) -> _Left:
        async with aclosing(SQLiteOutbox(self._file)) as outbox:
            rows = await outbox.rows(EVERYTHING)
        ours = [row for row in rows if row.visitor == self._key]
        held = sum(row.claimed for row in ours)
        return _Left(held=held, free=len(ours) - held, others=len(rows) - len(ours))

    def _finish(self, books: Statistics, left: _Left) -> None:
        """Tell how the run ended."""
        outcomes = as_object(books.accepted, books)
        counts = {name: count for name, count in outcomes.items() if name not in {"lines", "unusable"}}
        if self._as_json:
            record = counts | {"held": left.held, "free": left.free, "others": left.others}
            typer.echo(json.dumps(record))
            return
        if is_missing(self._file):
            say(f"There is no outbox at {self._file}.")
        elif sys.stdout.isatty():
            Console().print(outcome_table("What became of the events", books))
        else:
            say(_sentence(counts))
        for count, whose in (
            (left.held, "left to running workers, which hold them"),
            (left.free, "left in the outbox, of no running worker"),
            (left.others, "of other datastreams, left as they are"),
        ):
            if count:
                say(f"{count} {whose}.")


def _sentence(counts: dict[str, int]) -> str:
    """Return the outcomes in one line, for logs and pipes."""
    parts = [
        f"{count} {name}"
        for name, count in counts.items()
        if name != "accepted" and (count or name == "delivered")
    ]
    accepted = counts["accepted"]
    return f"{accepted} {'event' if accepted == 1 else 'events'}: {', '.join(parts)}"


def _nothing() -> None:
    """Clear up nothing: what is not sent is safe where it is."""
