"""Asking the edge for a visitor's ECID, once for everybody who waits for it."""

from __future__ import annotations

import asyncio
import random
from copy import copy
from itertools import count
from typing import Protocol

from ._consent._opt_in import OptInState
from ._consent._rules import Verdict
from ._courier import ATTEMPTS, DELIVERY_TIMEOUT
from ._futures import CommandFuture, is_under_way
from ._household import Household
from ._identity_keeper import IdentityKeeper
from .edge.protocol import Reply
from .edge.retry import RetryPolicy, next_wait
from .edge.transport import Withdrawn
from .errors import AlloyError, EdgeError

__all__ = ["EcidRequest"]


class AskingVisitor(Protocol):
    """A visitor as the request sees it."""

    gate: OptInState

    @property
    def identity_keeper(self) -> IdentityKeeper:
        """What keeps who they are."""
        ...

    def learn(self, reply: Reply) -> None:
        """Take what the edge has answered."""

    def get_ecid(self, future: CommandFuture[str]) -> None:
        """Take a future back to the gate, whose consent has expired meanwhile."""

    def end_ecid_request(self) -> None:
        """Let the request go: nobody waits any more."""


class EcidRequest:
    """Asks until nobody waits any more; made when somebody does, and gone then.

    What fails and may succeed later is tried again, as events are: within ``max_attempts`` and ``delivery_timeout``, which
    are those of events in memory, since nobody waits for a week.

    Args:
        visitor: whose ECID it is.
        household: what all visitors share.

    Attributes:
        task: what asks; None while nothing does.
    """

    __slots__ = ("_household", "_pause", "_visitor", "_wanted", "task")

    def __init__(self, visitor: AskingVisitor, household: Household) -> None:
        self._visitor = visitor
        self._household = household
        self._wanted: list[CommandFuture[str]] = []
        self._pause: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def add(self, future: CommandFuture[str]) -> None:
        """End a future with the ECID."""
        self._wanted.append(future)
        future.add_done_callback(self._left)
        if not is_under_way(self.task):
            self.task = self._household.own(self._acquire(), "alloy-ecid")

    def reject(self, error: AlloyError) -> None:
        """End everything that waits now with an error; what comes after that is asked for."""
        wanted, self._wanted = self._wanted, []
        for future in wanted:
            future.reject(copy(error))
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.task is None and not self._wanted:
            self._visitor.end_ecid_request()

    async def _acquire(self) -> None:
        try:
            while self._wanted:
                epoch = self._visitor.gate.epoch
                error = await self._ask_patiently()
                if epoch == self._visitor.gate.epoch:  # otherwise those were refused, and others may wait now
                    self._tell(error)
        finally:
            self.task = None
            self._end_if_idle()  # otherwise it was cancelled by somebody else, and whoever comes next asks again

    def _tell(self, error: AlloyError | None) -> None:
        """End what waits, also what came while it was asked; where consent has expired, it waits for consent again."""
        wanted, self._wanted = self._wanted, []
        ecid = self._visitor.identity_keeper.identity.ecid
        for future in wanted:
            if ecid is not None:
                future.resolve(ecid)
            elif not self._visitor.gate.is_opted_in:
                self._visitor.get_ecid(future)
            else:
                future.reject(
                    copy(error) if error is not None else EdgeError(200, title="the answer names no ECID")
                )

    async def _ask_patiently(self) -> AlloyError | None:
        """Ask until there is an answer, or trying again is no use; return as ``_ask`` does."""
        deadline = self._household.clock.monotonic() + (
            self._household.settings.delivery_timeout or DELIVERY_TIMEOUT
        )
        for attempt in count(1):
            error = await self._ask()
            wait = None if error is None else self._wait_after(error, attempt, deadline)
            if wait is None:
                return error
            await self._rest(wait)
            if not self._is_wanted():
                return error
        raise AssertionError  # counting does not end

    def _wait_after(self, error: AlloyError, attempt: int, deadline: float) -> float | None:
        settings, clock = self._household.settings, self._household.clock
        return next_wait(
            RetryPolicy(settings.max_attempts or ATTEMPTS, settings.max_retry_after),
            error,
            attempt=attempt,
            consents=self._visitor.gate.is_opted_in,
            remaining=deadline - clock.monotonic(),
            now=clock.time(),
            chance=random.random(),  # noqa: S311 - spreads clients, hides nothing
        )

    def _is_wanted(self) -> bool:
        return any(not future.done() for future in self._wanted)

    async def _rest(self, wait: float) -> None:
        """Wait for the next attempt, as long as somebody waits for it."""
        self._pause = asyncio.get_running_loop().create_future()
        timer = self._household.clock.call_later(wait, self._wake)
        try:
            await self._pause
        finally:
            self._pause = None
            timer.cancel()

    def _wake(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    def _left(self, _: object) -> None:
        if not self._is_wanted():
            self._wake()

    async def _ask(self) -> AlloyError | None:
        """Ask the edge once; return what went wrong, or None, also when consent went away."""
        epoch = self._visitor.gate.epoch

        def may_start() -> bool:
            return self._visitor.gate.verdict(epoch) is Verdict.PASS

        keeper, household = self._visitor.identity_keeper, self._household
        identity = keeper.identity
        try:
            await keeper.ensure()
            if identity.ecid is None and may_start():
                hint = identity.hint(household.clock.monotonic())
                reply = await household.courier.edge.acquire(
                    identity.identity_map(), hint=hint, may_start=may_start
                )
                if may_start():
                    self._visitor.learn(reply)
        except Withdrawn:
            return None
        except AlloyError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave a future pending
            return AlloyError(f"internal error ({type(error).__name__}); please report it")
        return None
