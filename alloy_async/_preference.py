"""Keeping the visitor's newest choice: one write at a time, and the last word wins."""

from __future__ import annotations

import asyncio
import logging
from copy import copy
from math import inf
from typing import Literal, TypeAlias

from ._clock import Cancellable, Clock
from ._consent._opt_in import OptInState
from ._futures import CommandFuture
from .errors import AlloyClosed, ConsentStoreError
from .stores.base import Preference, Store, VisitorKey

__all__ = ["PreferenceKeeper", "describe_store_error"]

Wish: TypeAlias = Literal["all", "none", "pending"]
"""What is to be kept; "pending" means: forget."""

FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds until a refusal that could not be saved is tried again; doubled up to the second."""


class PreferenceKeeper:
    """Applies choices to the gate and to the store, in the order that keeps the promises.

    Narrow at once, widen once written: "none" holds before its save begins, "all" only after its save. Of choices that
    overlap the newest wins, and all of their futures end when it is written.

    Args:
        gate: the visitor's gate.
        store: where the choice is kept.
        key: whose choice it is.
        max_age: seconds a choice is valid.
        asked: whether visitors are asked at all; if not, the gate opens again after a forgetting.
        clock: where time comes from.
        logger: hears of a refusal that could not be saved.

    Attributes:
        chosen_at: seconds since 1970 of the newest choice; 0 when none is known.
        consents_since: seconds since 1970 of the newest refusal or forgetting that is known, or of the first yes after it:
            what was accepted before that is not sent.
        in_doubt: whether somebody else may have refused, so that a yes opens nothing before the store was read.
    """

    __slots__ = (
        "_asked",
        "_clock",
        "_epoch",
        "_gate",
        "_in_doubt",
        "_key",
        "_logger",
        "_max_age",
        "_owed",
        "_refused_until",
        "_retry",
        "_retry_delay",
        "_said_at",
        "_store",
        "_task",
        "_ticket",
        "_waiting",
        "_wish",
        "_written_until",
        "chosen_at",
        "consents_since",
        "in_doubt",
    )

    def __init__(
        self,
        gate: OptInState,
        store: Store,
        key: VisitorKey,
        *,
        max_age: float,
        asked: bool,
        clock: Clock,
        logger: logging.Logger,
    ) -> None:
        self._gate = gate
        self._store = store
        self._key = key
        self._max_age = max_age
        self._asked = asked
        self._clock = clock
        self._logger = logger
        self._ticket = 0
        self._epoch: int | None = None
        self._wish: Wish | None = None
        self._refused_until = 0.0
        self._owed: Wish | None = None
        # Seldom any, and there are very many keepers: an empty list for each takes memory, and the collector's time.
        self._waiting: list[CommandFuture[Wish]] | None = None
        self._in_doubt: tuple[CommandFuture[Wish], ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._retry: Cancellable | None = None
        self._retry_delay = FIRST_RETRY
        self._written_until = 0.0
        self._said_at = 0.0
        self.chosen_at = self.consents_since = 0.0
        self.in_doubt = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be written, so that all that is known here is in the store."""
        return self._task is None and self._wish is None and self._owed is None

    async def load(self) -> Preference | None:
        """Return the choice that is kept and still valid; None when there is none.

        Raises:
            ConsentStoreError: the store could not say.
        """
        try:
            preference = await self._store.load_preference(self._key)
        except Exception as error:  # noqa: BLE001 - a store of somebody else's may raise what it should not
            problem = _as_store_error("load", error)
        else:
            return self._valid(preference)
        raise problem

    def _valid(self, preference: Preference | None) -> Preference | None:
        if preference is None or preference.expires_at <= self._clock.time():
            return None
        return preference

    @property
    def ticket(self) -> int:
        """How many choices were made here; what was read before the last one is out of date."""
        return self._ticket

    def take(self, preference: Preference | None, ticket: int, *, refused: bool | None = False) -> None:
        """Apply what the store has said, unless somebody has chosen here meanwhile.

        Args:
            preference: the choice that is kept.
            ticket: of when it was asked for.
            refused: whether there was a refusal or a forgetting in between, even if the store says yes now: then what
                was called before it is never sent. None: nobody knows.
        """
        self._hear_of_refusals(preference)
        if ticket != self._ticket:
            return
        if not self.is_settled:
            # What is owed takes the place of what the store says, but does not undo a refusal.
            if refused is not False and self._gate.purposes == "pending":
                self._gate.forget()
            return
        if preference is not None and self.knows(preference):
            self._epoch = preference.epoch  # of a choice made here it was not known before
            if self._gate.purposes == "pending":  # it was in doubt, or has expired
                self._apply(preference)
            return
        if preference is None and refused is not True and self._gate.purposes == "none":
            return  # the store has lost it: of a forgetting there will be news
        if self._was_refused(preference, refused=refused):
            self._gate.forget()
        if preference is not None:
            self._apply(preference)
        elif not self._asked and self._gate.purposes == "pending":
            self._gate.choose("all")

    async def learn_of_refusals(self) -> None:
        """Read since when the visitor consents: there may have been a refusal of which nobody has told.

        Raises:
            ConsentStoreError: the store could not say.
        """
        self._hear_of_refusals(await self.load())

    def _hear_of_refusals(self, preference: Preference | None) -> None:
        if preference is not None:
            self.consents_since = max(self.consents_since, preference.consents_since)

    def knows(self, preference: Preference) -> bool:
        """Return whether it is the choice that is known here already: news of one's own choices come back too.

        By its time alone it could not be told: a refusal that a yes has overtaken is kept first, with the time of the yes.
        """
        refused = self._refused_until > 0
        return (preference.chosen_at, preference.purposes == "none") == (self.chosen_at, refused)

    def replaced_a_refusal(self, preference: Preference) -> bool:
        """Return whether a yes that is known here took the place of a refusal of which nobody has told."""
        since = preference.consents_since
        is_first = since >= preference.chosen_at and since > self.consents_since
        return is_first and preference.purposes == "all" and self.knows(preference)

    def _was_refused(self, preference: Preference | None, *, refused: bool | None) -> bool:
        """Return whether what was called before may not be sent, as far as it can be told; in doubt it may not."""
        if preference is None:  # forgotten, where one was known that has not run out
            known = self._epoch is not None or self.chosen_at > 0
            return refused is True or (known and (refused is None or not self._has_run_out()))
        if self._epoch is not None:
            return preference.epoch > self._epoch
        if refused is None and self.chosen_at == 0.0:  # so nothing was released: all that was called waits
            return self._clock.time() - self._gate.waited <= preference.chosen_at
        return refused is not False

    def _has_run_out(self) -> bool:
        return max(self._written_until, self._refused_until) <= self._clock.time()

    def _apply(self, preference: Preference) -> None:
        self._epoch = preference.epoch
        self.chosen_at = preference.chosen_at
        if preference.purposes == "none":
            self._refused_until = preference.expires_at
        else:
            self._written_until, self._refused_until = preference.expires_at, 0.0
        # Where nobody is asked, nobody is asked again when a yes expires.
        lasts = preference.purposes == "all" and not self._asked
        self._gate.choose(preference.purposes, until=inf if lasts else preference.expires_at)

    def keep(self, wish: Wish, future: CommandFuture[Wish]) -> None:
        """Take a choice; the future ends when the newest choice is written, with that choice.

        It ends with ``ConsentStoreError`` when it could not be written. Cancelling it never withdraws the choice.
        """
        self._waiting = self._waiting or []
        self._waiting.append(future)
        self._ticket += 1
        self._wish = wish
        self._said_at = self._clock.time()
        self._owed = self._owed if wish == "all" else wish
        self._call_off_retry()
        self._narrow(wish)
        self._start()

    def end_doubt(self, problem: ConsentStoreError | None = None) -> None:
        """End the futures of choices that were written while somebody else may have refused, with what holds now.

        Args:
            problem: why it cannot be told.
        """
        waiting, self._in_doubt = self._in_doubt, ()
        for future in waiting:
            if problem is None:
                future.resolve(self._gate.purposes)
            else:
                future.reject(copy(problem))

    async def written(self) -> None:
        """Wait until nothing is being written: what is read meanwhile may be what was there before."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def save_owed(self) -> None:
        """Try now, and not only after a while, to save a refusal or a forgetting that could not be saved."""
        if self._owed is not None and self._task is None:
            self._try_again()

    async def finish(self) -> None:
        """Finish what is being written, and try once more what could not be written."""
        self._try_again()
        await self.written()

    async def stop(self) -> None:
        """Stop writing; say so when a refusal is not written."""
        self._call_off_retry()
        if self._task is not None:
            self._task.remove_done_callback(self._has_written)
            self._task.cancel()
            await asyncio.wait([self._task])
        if "none" in {self._owed, self._wish}:
            self._logger.error("a refusal could not be saved before closing; it must be asked for again")
        for future in (*(self._waiting or ()), *self._in_doubt):
            future.reject(AlloyClosed("opt_in"))

    def _narrow(self, wish: Wish) -> None:
        if wish != "all":
            self.consents_since = self._said_at
        if wish == "none":
            self.chosen_at = self._said_at
            self._refused_until = self._clock.time() + self._max_age
            self._gate.choose("none", until=self._refused_until)
        elif wish == "pending":
            self.chosen_at = self._refused_until = 0.0
            self._gate.forget()
        else:
            self._gate.expect_all()

    def _try_again(self) -> None:
        self._call_off_retry()
        if self._wish is None:
            self._wish = self._owed
        if self._wish is not None:
            self._start()

    def _call_off_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.Task(self._write(), name="alloy-preference")
            self._task.add_done_callback(self._has_written)

    async def _write(self) -> None:
        """Write until the newest wish is written or could not be."""
        try:
            while self._wish is not None:
                ticket, wish = self._ticket, self._wish
                problem = await self._try(wish)
                if ticket == self._ticket:
                    self._wish = None
                    self._conclude(wish, problem)
        finally:
            self._task = None

    def _has_written(self, task: asyncio.Task[None]) -> None:
        """Conclude where somebody has cancelled it: a callback, since a task that is cancelled early runs nothing."""
        if self._task is task:
            self._task = None
        if task.cancelled() and self._task is None and self._wish is not None:
            wish, self._wish = self._wish, None
            self._conclude(wish, ConsentStoreError("save", "the store", "it was given up."))

    async def _try(self, wish: Wish) -> ConsentStoreError | None:
        """Write a wish; before a yes the refusal or forgetting that it overtook, which also erases the identity."""
        ticket, owed = self._ticket, self._owed
        problem = None
        steps: list[Wish] = [owed, wish] if wish == "all" and owed is not None else [wish]
        for step in steps:
            problem = problem or await self._try_one(step)
        if problem is None and ticket == self._ticket:
            self._owed = None
        return problem

    async def _try_one(self, wish: Wish) -> ConsentStoreError | None:
        now = self._clock.time()
        try:
            if wish == "pending":
                await self._store.forget(self._key)
            else:
                preference = Preference(wish, self._said_at, now + self._max_age)
                await self._store.save_preference(self._key, preference)
        except Exception as error:  # noqa: BLE001 - a store of somebody else's may raise what it should not
            return _as_store_error("save", error)
        if wish == "all":
            self._written_until = now + self._max_age
        return None

    def _conclude(self, wish: Wish, problem: ConsentStoreError | None) -> None:
        waiting, self._waiting = self._waiting or [], None
        # Not before it is erased: the next event would read it back.
        if wish == "pending" and not self._asked and not self.in_doubt:
            self._gate.choose("all")
        if problem is None:
            self._written(wish)
        else:
            self._not_written(wish)
        if problem is None and wish == "all" and self.in_doubt:
            self._in_doubt += (*waiting,)
            return
        for future in waiting:
            if problem is None:
                future.resolve(wish)
            else:
                future.reject(copy(problem))

    def _written(self, wish: Wish) -> None:
        self._retry_delay = FIRST_RETRY
        self._epoch = None  # the store has given the choice another one
        if wish == "all":
            self.chosen_at = self._said_at
            if self._refused_until:
                self.consents_since = self._said_at  # as the store has it
            self._refused_until = 0.0
            if not self.in_doubt:
                self._gate.choose("all", until=self._written_until)

    def _not_written(self, wish: Wish) -> None:
        # The refusal that was to be lifted stands.
        if wish == "all" and self._refused_until > self._clock.time():
            self._gate.choose("none", until=self._refused_until)
        if self._owed is None:
            return
        self._retry = self._clock.call_later(self._retry_delay, self._try_again)
        self._retry_delay = min(self._retry_delay * 2, LAST_RETRY)


def describe_store_error(error: Exception) -> str:
    """Say what a store failed with; a foreign error's own text may hold what must not be logged."""
    return str(error) if isinstance(error, ConsentStoreError) else f"the store raised {type(error).__name__}"


def _as_store_error(action: str, error: Exception) -> ConsentStoreError:
    if isinstance(error, ConsentStoreError):
        return error
    return ConsentStoreError(action, "the store that was given", f"it raised {type(error).__name__}.")
