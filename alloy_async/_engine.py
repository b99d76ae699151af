"""What ``configure`` builds, how it starts, and how it ends; the concrete defaults are chosen here."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ._clock import Clock, Ids, RandomIds, SystemClock
from ._courier import KEPT_TIMEOUT, Courier
from ._erasing import ErasingStore
from ._event import IDENTITY_ROOM, EventParts
from ._fallback import Fallback
from ._futures import CommandFuture, FailureLog, HomeLoop, cancel_all
from ._household import Household
from ._ledger import Ledger
from ._options import nearest
from ._outbox_keeper import OutboxKeeper
from ._recovered import RecoveredEvents
from ._signed import SignedStore
from ._slices import SLICE, in_slices, slice_by_slice
from ._visitor import VisitorState
from ._visitors import Visitors
from .edge.client import EdgeClient
from .edge.protocol import V1, V2, event_room
from .edge.token import Credentials, TokenSource
from .edge.transport import Transport
from .errors import (
    AlloyClosed,
    AlloyError,
    ConfigurationError,
    ConsentStoreError,
    EventTooLarge,
    NotConfigured,
)
from .hooks import Hooks
from .outbox.base import Outbox, Shelf
from .stores.base import Change, Store, VisitorKey, WatchedStore
from .stores.nowhere import NowhereStore

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Engine", "make_clock"]

RELEASE_TIME = 2.0
"""Seconds that closing waits for connections and files; a disk that hangs must not keep a process alive."""


class Engine:
    """Store, transport, edge client, courier and visitors of one configured instance.

    Args:
        settings: what ``configure`` was told.
        ledger: the books of the instance.
        failures: where a failure is counted that nobody awaited.
        logger: hears of what goes wrong without harm.
        home: the event loop of the instance.

    Attributes:
        visitor: the one person of a single-person process.
        visitors: everybody else, by key.

    Raises:
        ConfigurationError: something that was given cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        failures: FailureLog,
        logger: logging.Logger,
        home: HomeLoop,
    ) -> None:
        self.settings = settings
        self.clock = make_clock(settings)
        self.ids = _make_ids(settings)
        self.local_time = "placeContext" in settings.context
        self.one_primary = settings.authenticated
        dialect = V2 if settings.authenticated else V1
        self.event_room = event_room(settings.max_body_bytes, dialect)
        self.ready = False
        self.starting: asyncio.Task[None] | None = None
        self._flushes: list[CommandFuture[None]] = []
        self._waiting: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        self._ledger = ledger
        self._failures = failures
        self._logger = logger
        hooks = Hooks(settings.hooks, logger)
        outbox = _make_outbox(settings, self.clock)
        self._keeper = None if outbox is None else _make_keeper(outbox, settings, ledger, self.clock, logger)
        self._store, self._owns_store = _make_store(settings, self.clock)
        transport = _make_transport(settings)
        self._edge = EdgeClient(
            transport,
            base=settings.base_url(),
            config_id=settings.config_id,
            ids=self.ids,
            dialect=dialect,
            tokens=_make_token_source(settings, transport, self.clock),
            acquire_base=settings.open_url(),
        )
        self._courier = Courier(
            self._edge,
            settings=settings,
            keeper=self._keeper,
            ledger=ledger,
            hooks=hooks,
            clock=self.clock,
        )
        choices, self._own_name = self._store, None
        if _tells(self._store):
            choices = SignedStore(self._store)
            self._own_name = choices.name
        if self._keeper is not None:
            choices = ErasingStore(choices, self._keeper, relay=settings.relay)
        self._household = Household(
            settings,
            store=choices,
            courier=self._courier,
            ledger=ledger,
            hooks=hooks,
            clock=self.clock,
            ids=self.ids,
            failures=failures,
            logger=logger,
            home=home,
        )
        self.visitor = VisitorState(self._key(""), self._household, parked_ttl=settings.parked_ttl)
        self.visitor.knows_choice = True  # start reads it
        digest = _digest_of(self._store, settings)
        self.visitors = Visitors(
            self._make_visitor,
            most=settings.max_visitors,
            idle=settings.visitor_parked_ttl,
            clock=self.clock,
            digest=digest,
        )
        self._recovered = RecoveredEvents(
            self._find, self._meet, courier=self._courier, asks=settings.opt_in_enabled, logger=logger
        )
        self._own_digest = None if digest is None else digest("")
        self._passing: weakref.WeakSet[VisitorState] = weakref.WeakSet()
        self._closed_with: Callable[[str], AlloyError] | None = None
        self._farewell = weakref.finalize(
            self, _say_what_is_left, ledger, logger, os.getpid(), relay=settings.relay
        )

    def check_size(self, parts: EventParts, beside: int = 0) -> None:
        """Refuse an event that can never fit into a request, its identity included.

        Args:
            parts: the event.
            beside: bytes that go up beside it.

        Raises:
            EventTooLarge: it is too large.
        """
        room = self.event_room - beside - (0 if parts.has_identity else IDENTITY_ROOM)
        if len(parts.body) > room:
            raise EventTooLarge("event", len(parts.body), room)

    @property
    def is_durable(self) -> bool:
        """Whether released events are kept in a durable outbox."""
        return self._keeper is not None

    # Visitors

    def recall_choice(self, state: VisitorState) -> None:
        """Begin to read what a visitor has chosen, unless it is known; once the engine is ready."""
        if self.ready:
            state.recall_choice()
        else:
            self.when_ready(state.recall_choice, lambda: None)

    def passing_visitor(self) -> VisitorState:
        """Return the state of a visitor without a key: nothing of them is kept, and nobody else finds it.

        Their events wait in memory, since after a restart nobody could say whether they may still be sent. Only what is
        left to a relay is stored, for the moment until it is sent.
        """
        stored = self._keeper is not None and self.settings.relay
        store = ErasingStore(NowhereStore(), self._keeper) if stored and self._keeper else NowhereStore()
        state = self._new_state(self._key(self.ids()), store, is_kept=stored, is_passing=True)
        state.knows_choice = True
        if not self.settings.opt_in_enabled:
            state.gate.choose("all")
        self._passing.add(state)
        return state

    def _make_visitor(self, key: str) -> VisitorState:
        return self._new_state(self._key(key), None)

    def _new_state(
        self, key: VisitorKey, store: Store | None, *, is_kept: bool = True, is_passing: bool = False
    ) -> VisitorState:
        state = VisitorState(
            key,
            self._household,
            store=store,
            is_kept=is_kept,
            is_passing=is_passing,
            patience=self._household.patience,
            max_parked=self.settings.visitor_max_parked,
            parked_ttl=self.settings.visitor_parked_ttl,
        )
        if self._closed_with is not None:
            state.gate.close(self._closed_with)
        return state

    def _key(self, visitor: str) -> VisitorKey:
        return VisitorKey(self.settings.ims_org_id, self.settings.config_id, visitor)

    def _find(self, key: VisitorKey) -> VisitorState | None:
        """Return the state of a visitor that is known here."""
        return self._look_up(key, self.visitors.known)

    def _meet(self, key: VisitorKey) -> VisitorState | None:
        """Return the state of a visitor, known here until now or not; None for one of another instance."""
        return self._look_up(key, self.visitors.get)

    def _look_up(self, key: VisitorKey, by_name: Callable[[str], VisitorState | None]) -> VisitorState | None:
        if key[:2] != self.visitor.key[:2]:
            return None  # of another instance that shares the outbox
        return by_name(key.visitor) if key.visitor else self.visitor

    def _everybody(self) -> list[VisitorState]:
        return [self.visitor, *self.visitors, *self._passing]

    async def start(self) -> None:
        """Read the choice that is kept, and open, close or keep waiting at the gate accordingly."""
        try:
            await self._open_outbox()
            await self._apply_kept_choice()
            self._watch()
        except BaseException:
            self.refuse_all()
            await self._close_gates(NotConfigured)
            await self._release_resources()
            raise
        self.ready = True
        if self._keeper is not None:
            self._keeper.claim()
        for go_on, _ in self._waiting:
            go_on()

    def _watch(self) -> None:
        """Hear what other processes change, where the store can tell."""
        if _tells(self._store):
            listening = weakref.WeakMethod(self._heard)  # the store may outlive this engine
            self._store.watch(lambda changes: _tell(listening(), changes))

    def _heard(self, changes: Sequence[Change] | None) -> None:
        """Read again what was changed; None: any of it may have changed, and nobody knows how."""
        if self._closed_with is not None:
            return
        if changes is None:
            in_slices(filter(_is_in_use, [self.visitor, *self.visitors]), _look_again_in_doubt)
            return
        for change in changes:
            # What was refused here has ended. It is read all the same: a yes may be kept whose answer was lost.
            refused = change.refused and change.by != self._own_name
            state = (
                self.visitor if change.visitor == self._own_digest else self.visitors.named(change.visitor)
            )
            if state is not None and (state.knows_choice or refused or len(state.gate)):
                state.look_again(refused=refused)

    def refuse_all(self) -> None:
        """End what waits for a ``configure`` that has failed; harmless when called twice."""
        self._closed_with = NotConfigured
        for state in self._everybody():
            state.gate.close(NotConfigured)
        waiting, self._waiting = self._waiting, []
        for _, refuse in waiting:
            refuse()

    def when_ready(self, go_on: Callable[[], Any], refuse: Callable[[], Any]) -> None:
        """Call one of the two when ``start`` has ended."""
        self._waiting.append((go_on, refuse))

    async def _apply_kept_choice(self) -> None:
        if not self.settings.opt_in_enabled:
            await self._refuse_to_ignore_a_refusal()
            self.visitor.gate.choose("all")
            return
        try:
            ticket = self.visitor.keeper.ticket
            preference = await self.visitor.keeper.load()
        except ConsentStoreError as error:
            self._logger.warning("%s; the visitor's choice counts as unknown", error)
            return
        if preference is not None:
            self.visitor.keeper.take(preference, ticket)
            if self._keeper is not None and self._keeper.is_entered:  # otherwise once it is
                await self._erase_what_was_refused()

    # The durable outbox

    async def _open_outbox(self) -> None:
        if self._keeper is not None:
            await self._keeper.open(
                shared=self._recovered.of_shared_outbox(),
                local=self._recovered.of_local_outbox(),
                on_refused=self._refused_elsewhere,
                on_current=self._outbox_is_current,
                on_back=self._outbox_is_back,
                on_entered=self._read_again,
            )

    def _outbox_is_current(self) -> None:
        self._courier.wake()
        waiting, self._flushes = self._flushes, []
        for future in waiting:
            self.flush(future)

    def _outbox_is_back(self) -> None:
        """Tell it at once of refusals that it could not be told of: others send what they find there."""
        if self._closed_with is None:  # closing tries each once more by itself
            in_slices(self._everybody(), _save_owed_refusal)

    async def _read_again(self) -> None:
        """Read the choices that are known again: somebody may have changed them without our hearing of it."""
        states = [state for state in (self.visitor, *self.visitors) if _is_in_use(state)]
        await slice_by_slice(states, _look_again_in_doubt)
        for state in states:
            await state.read_choice()
        await self._erase_what_was_refused()

    def _refused_elsewhere(self, visitor: VisitorKey) -> None:
        """Take note of a refusal; where nobody is asked, as in a relay, the outbox alone says what may be sent."""
        state = self._find(visitor)
        if state is not None and self.settings.opt_in_enabled:
            state.refused_elsewhere()

    async def _erase_what_was_refused(self) -> None:
        """Erase what a process left that was killed between a refusal and its erasing."""
        if self._keeper is None or self.visitor.gate.purposes != "none":
            return
        if (await self._keeper.shelf()).events:
            await self._keeper.erase(self.visitor.key)

    def take_over(self) -> None:
        """Look for what other workers have left."""
        if self._keeper is not None:
            self._keeper.claim()

    async def shelf(self) -> Shelf:
        """Return how the outbox stands; in memory, how the queue does."""
        if self._keeper is not None:
            return await self._keeper.shelf()
        return Shelf(events=self._ledger.queued, size=self._ledger.queued_bytes, workers=1)

    async def _refuse_to_ignore_a_refusal(self) -> None:
        preference = await self.visitor.keeper.load()
        if preference is not None and preference.purposes == "none":
            raise ConfigurationError(
                "opt_in_enabled: the visitor has declined, so consent cannot be switched off; "
                "set opt_in_enabled=True, or forget the choice first (alloy-async consent forget).",
                option="opt_in_enabled",
            )

    def _is_recovering(self, keeper: OutboxKeeper) -> bool:
        """Return whether something may be left of a visitor who consents; until the first look nobody knows."""
        left = keeper.left()
        return left is None or keeper.is_claiming or any(map(self._recovered.consents, left))

    def flush(self, future: CommandFuture[None]) -> None:
        """End a future when every event that is released now, or was left by an earlier start, has ended."""
        if self._keeper is not None and self._is_recovering(self._keeper):
            if not self._keeper.waits_for_room:
                self._keeper.claim()
            self._flushes.append(future)
            self._courier.hurry()
            return
        remaining = self._courier.open_commands()
        for state in self._everybody():
            state.go_on()
            remaining += state.open_commands()

        arranged = False

        def look() -> None:
            nonlocal arranged
            arranged = False
            if future.done():
                remaining.clear()
            while remaining and remaining[-1].stage in {None, "parked"}:
                remaining.pop()
            if not remaining:
                self._ledger.unwatch(look_soon)
                future.resolve(None)

        def look_soon() -> None:  # once the events that have ended have told their own futures
            nonlocal arranged
            if not arranged:
                arranged = True
                loop.call_soon(look)

        loop = asyncio.get_running_loop()
        self._ledger.watch(look_soon)
        future.add_done_callback(lambda _: look_soon())
        self._courier.hurry()
        look()

    async def stop(self, grace: float) -> None:
        """End everything: what is parked at once, what is under way after at most ``grace`` seconds."""
        await self._within(grace, self._finish())
        if self.starting is not None:
            self.starting.cancel()
        for future in self._flushes:
            future.reject(AlloyClosed("flush"))
        await self._close_gates()
        self._household.patience.stop()
        await cancel_all(self._household.tasks)
        for number, state in enumerate(self._everybody()):
            await state.stop()
            if number % SLICE == 0:
                await asyncio.sleep(0)
        if self._keeper is not None:
            await self._within(RELEASE_TIME, self._keeper.finish())
        await self._courier.stop()
        await self._within(RELEASE_TIME, self._release_resources())
        self._farewell()

    async def _within(self, seconds: float, work: Coroutine[Any, Any, None]) -> None:
        """Do something for at most so many seconds; what it was waiting for then is given up."""
        task = asyncio.Task(work, name="alloy-close")
        timer = self.clock.call_later(seconds, task.cancel)
        await asyncio.wait([task])
        timer.cancel()
        if not task.cancelled() and task.exception() is not None:
            self._logger.error("closing went wrong with %s", type(task.exception()).__name__)

    async def _finish(self) -> None:
        """Let what is under way come to its end: configure, choices, requests, writes to the store."""
        if self.starting is not None:
            await asyncio.wait([self.starting])
        for state in self._everybody():
            await state.finish()  # a yes that is being read or written still releases what waits for it
        await self._close_gates()
        flushed: CommandFuture[None] = CommandFuture.make(self._failures)
        self.flush(flushed)
        await flushed
        while self._household.tasks:
            await asyncio.wait(self._household.tasks)
        for state in self._everybody():
            await state.keeper.finish()

    async def _close_gates(self, error: Callable[[str], AlloyError] = AlloyClosed) -> None:
        self._closed_with = error
        self._household.is_open = False
        ended = 0
        for state in self._everybody():
            ended += len(state.gate)
            state.gate.close(error)
            while len(state.gate):  # noqa: ASYNC110 - the slices that end what is parked take their turns
                await asyncio.sleep(0)
            if ended >= SLICE:
                ended = 0
                await asyncio.sleep(0)

    async def _release_resources(self) -> None:
        try:
            if self._keeper is not None:
                await self._keeper.aclose()  # first: others can go on with what is kept
        finally:
            try:
                await self._edge.aclose()
            finally:
                if self._owns_store:
                    await self._store.aclose()


def _tells(store: Store) -> TypeGuard[WatchedStore]:
    """Return whether a store tells what others change."""
    return callable(getattr(store, "watch", None))


def _digest_of(store: Store, settings: Settings) -> Callable[[str], str] | None:
    """Return what tells the name by which changes in a store speak of a visitor; None where it tells of none."""
    if not _tells(store):
        return None
    digest = store.digest
    organisation, datastream = settings.ims_org_id, settings.config_id  # looked up once, not with each view
    return lambda visitor: digest(VisitorKey(organisation, datastream, visitor))


def _tell(heard: Callable[[Sequence[Change] | None], None] | None, changes: Sequence[Change] | None) -> None:
    if heard is not None:
        heard(changes)


def _is_in_use(state: VisitorState) -> bool:
    """Return whether its choice is known, or waited for; otherwise it is read when something needs it."""
    return state.knows_choice or len(state.gate) > 0


def _save_owed_refusal(state: VisitorState) -> None:
    state.keeper.save_owed()


def _look_again_in_doubt(state: VisitorState) -> None:
    state.look_again(refused=None)


def make_clock(settings: Settings) -> Clock:
    """Return the clock that was given, or the machine's.

    Raises:
        ConfigurationError: what was given is no clock.
    """
    if settings.clock is None:
        return SystemClock()
    _check_protocol(settings.clock, "clock", ("time", "monotonic", "call_later"))
    clock: Clock = settings.clock
    return clock


def _make_ids(settings: Settings) -> Ids:
    given: Any = settings.ids
    if given is not None and not callable(given):
        raise ConfigurationError("ids: must be a callable that returns text.", option="ids")
    return RandomIds() if given is None else settings.ids


def _make_store(settings: Settings, clock: Clock) -> tuple[Store, bool]:
    """Return the store, and whether it is ours to close."""
    if settings.store == "memory":
        from .stores.memory import MemoryStore  # noqa: PLC0415 - each start imports only the store it uses

        return MemoryStore(), True
    if settings.store == "sqlite":
        from .stores.sqlite import SQLiteStore  # noqa: PLC0415 - as above

        return SQLiteStore(settings.state_dir, clock=clock), True
    if settings.store == "redis":
        from .stores.redis import RedisStore  # noqa: PLC0415 - as above

        return RedisStore(_redis_url(settings)), True
    _check_protocol(
        settings.store,
        "store",
        ("load_preference", "save_preference", "load_identity", "save_identity", "forget", "aclose"),
    )
    store: Store = settings.store
    if _tells(store):
        _check_watched(store)
    return store, False


def _check_watched(store: WatchedStore) -> None:
    """Refuse a store that tells of changes and not whose they are: one's own would pass for somebody else's."""
    _check_protocol(store, "store", ("digest",))
    for name in ("save_preference", "forget"):
        parameters = inspect.signature(getattr(store, name)).parameters.values()
        if not any(
            parameter.name == "by" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters
        ):
            raise ConfigurationError(
                f"store: {name}() of {type(store).__name__} must take the keyword by, since there is a watch(): "
                "hand it back as Change.by, so that an instance knows its own changes; see WatchedStore in the docs.",
                option="store",
            )


def _make_outbox(settings: Settings, clock: Clock) -> Outbox | None:
    """Return what keeps released events, or None where they wait in memory alone, without a second copy."""
    given: Any = settings.outbox
    if given == "memory":
        return None
    if given == "redis":
        from .outbox.redis import RedisOutbox  # noqa: PLC0415 - as below

        return RedisOutbox(
            _redis_url(settings),
            max_events=settings.max_queued,
            max_bytes=settings.max_queued_bytes,
            ordered=settings.ordered,
        )
    if isinstance(given, (str, Path)):
        return _make_file_outbox(_outbox_path(settings), settings, clock)
    _check_protocol(
        given,
        "outbox",
        (
            "open",
            "write",
            "claim",
            "abandoned",
            "release",
            "expire",
            "renew",
            "may_send",
            "changes",
            "erase",
            "shelf",
            "aclose",
        ),
    )
    outbox: Outbox = given
    return outbox


def _make_file_outbox(path: Path, settings: Settings, clock: Clock) -> Outbox:
    from .outbox.sqlite import SQLiteOutbox  # noqa: PLC0415 - each start imports only the outbox it uses

    return SQLiteOutbox(
        path, clock=clock, max_events=settings.max_queued, max_bytes=settings.max_queued_bytes
    )


def _redis_url(settings: Settings) -> str:
    assert settings.redis_url is not None  # noqa: S101 - tells type checkers what Settings has checked
    return settings.redis_url.get_secret_value()


def _local_path(settings: Settings) -> Path:
    from .stores.sqlite import default_state_dir  # noqa: PLC0415 - as above

    return (settings.state_dir or default_state_dir()) / "outbox.sqlite3"


def _outbox_path(settings: Settings) -> Path:
    if settings.outbox == "sqlite":
        return _local_path(settings)
    path = Path(settings.outbox)
    if isinstance(settings.outbox, str) and not path.suffix and len(path.parts) == 1:
        hint = nearest(settings.outbox, ("memory", "sqlite", "redis"))
        raise ConfigurationError(
            f'outbox: must be "memory", "sqlite", "redis" or the path of a file such as ./outbox.sqlite3.{hint}',
            option="outbox",
        )
    return path


def _make_keeper(
    outbox: Outbox, settings: Settings, ledger: Ledger, clock: Clock, logger: logging.Logger
) -> OutboxKeeper:
    limits = {"max_queued": settings.max_queued, "max_queued_bytes": settings.max_queued_bytes}
    lifetime = settings.delivery_timeout or KEPT_TIMEOUT
    fallback = None
    if settings.when_outbox_fails == "local":
        local = _make_file_outbox(_local_path(settings), settings, clock)
        fallback = Fallback(local, lifetime=lifetime, ledger=ledger, clock=clock, logger=logger)
    return OutboxKeeper(
        outbox,
        limits=limits,
        lifetime=lifetime,
        ledger=ledger,
        clock=clock,
        logger=logger,
        hands_over=settings.relay,
        waits=settings.when_outbox_fails != "refuse",
        fallback=fallback,
    )


def _make_transport(settings: Settings) -> Transport:
    if settings.transport == "httpx":
        # httpx takes most of the import time, and may not be needed.
        from .edge._httpx import HttpxTransport  # noqa: PLC0415 - as said above

        return HttpxTransport(settings)
    if settings.transport == "aiohttp":
        from .edge._aiohttp import AiohttpTransport  # noqa: PLC0415 - an extra

        return AiohttpTransport(settings)
    if isinstance(settings.transport, str):
        raise ConfigurationError(
            f'transport: must be "httpx", "aiohttp" or an object with the Transport protocol.'
            f"{nearest(settings.transport, ('httpx', 'aiohttp'))}",
            option="transport",
        )
    _check_protocol(settings.transport, "transport", ("send", "aclose"))
    transport: Transport = settings.transport
    return transport


def _make_token_source(settings: Settings, transport: Transport, clock: Clock) -> TokenSource | None:
    """Return where access tokens come from; None where requests need none."""
    if settings.client_id is None or settings.client_secret is None:
        return None
    secret = settings.client_secret.get_secret_value()
    credentials = Credentials(settings.client_id, secret, settings.scopes, settings.ims_org_id)
    return TokenSource(transport, url=settings.token_url(), credentials=credentials, clock=clock)


def _say_what_is_left(ledger: Ledger, logger: logging.Logger, process: int, *, relay: bool) -> None:
    """Say in one line what could not be sent: when an instance is closed, or has gone without being closed.

    What was stored for a relay is as it should be, and by now perhaps sent.
    """
    if os.getpid() != process:
        return  # a forked child: these are its parent's events
    books = ledger.statistics()
    parked = ledger.abandoned["parked"] + books.parked
    queued = ledger.abandoned["queued"] + books.queued
    sending = ledger.abandoned["sending"] + books.sending
    # Of an instance that was not closed: what is open and in the outbox is not gone.
    open_and_stored = max(ledger.stored - books.kept, 0)
    sending -= max(open_and_stored - queued, 0)
    queued = max(queued - open_and_stored, 0)
    kept = books.kept + open_and_stored
    gone = parked + queued + sending
    if gone or (kept and not relay):
        logger.warning(
            "closed: %d events could not be sent and are gone (%d waited for consent, %d for the edge, %d were on the "
            "wire), %d are kept in the outbox for %s",
            gone, parked, queued, sending, kept, "a relay" if relay else "the next start",
        )  # fmt: skip


def _check_protocol(value: object, option: str, methods: Iterable[str]) -> None:
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise ConfigurationError(
            f"{option}: an object of type {type(value).__name__} has no {missing[0]}(); see the protocol in the docs.",
            option=option,
        )
