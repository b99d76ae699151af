"""The world around the state machine: people who choose, a store that fails, an edge that checks every byte."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from alloy_async import ConsentStoreError, NetworkError
from alloy_async.edge import EdgeResponse
from alloy_async.outbox import MemoryOutbox, MemoryShelf
from alloy_async.stores import MemoryStore, Preference, VisitorKey
from alloy_async.testing import RecordingEdge

MAX_PARKED = 6
MAX_QUEUED = 8
PARKED_TTL = 100.0
MAX_AGE = 1_000.0

REFUSES_FIRST = (
    b'{"type":"https://ns.adobe.com/aep/errors/EXEG-0104-422","title":"no","report":{"eventIndex":0}}'
)
ANSWERS = {
    "server error": lambda: EdgeResponse(500, {}, b"oops"),
    "busy": lambda: EdgeResponse(503, {}, b"busy"),
    "later": lambda: EdgeResponse(429, {"retry-after": "2"}, b""),
    "unreachable": lambda: NetworkError("http://edge", "reset"),
    "minds its input": lambda: EdgeResponse(
        400, {}, b'{"type":"https://ns.adobe.com/aep/errors/EXEG-0102-400","title":"no"}'
    ),
    "refuses the first event": lambda: EdgeResponse(422, {}, REFUSES_FIRST),
    "lacks consent": lambda: EdgeResponse(
        200, {}, b'{"handle":[],"warnings":[{"type":"https://ns.adobe.com/aep/errors/EXEG-0301-200"}]}'
    ),
    "broken": lambda: EdgeResponse(200, {}, b"<html>"),
    "bug in a transport": ZeroDivisionError,
}


@dataclass
class Person:
    """The whole model: what one visitor has said, and how often they said no."""

    organisation: str
    said: str = "pending"
    said_at: float = 0.0
    refusals: int = 0
    heard: bool = True
    calls: list[Call] = field(default_factory=list)

    def consents(self, store: MemoryStore, now: float) -> bool:
        """Whether a byte about this person may leave now: the last word is yes, it is written, and not too old."""
        kept = store.kept(self.organisation)
        return self.said == "all" and kept is not None and kept.purposes == "all" and now < kept.expires_at


@dataclass
class Call:
    """One call of event, and what became of it."""

    number: int
    refusals: int
    future: Any
    cancelled: bool = False
    killed: bool = False
    ended_as: object = None


class Mortal:
    """Whatever an instance uses, until the process is killed: then no call reaches it, and none returns."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def call(*arguments: Any, **keywords: Any) -> Any:
            await self._live()
            result = await method(*arguments, **keywords)
            await self._live()
            return result

        return call

    async def _live(self) -> None:
        if self.dead:
            await asyncio.get_running_loop().create_future()


class FaultyStore(MemoryStore):
    """Fails, waits, and notes what it is asked without consent."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.failing = False
        self.waiting: list[asyncio.Future[None]] = []
        self.slow = False

    def kept(self, organisation):
        return next(
            (value for key, value in self._preferences.items() if key.organisation == organisation), None
        )

    async def load_preference(self, key):
        await self._obstacle("load")
        return await super().load_preference(key)

    async def save_preference(self, key, preference, *, by=""):
        await self._obstacle("save")
        await super().save_preference(key, preference, by=by)

    async def forget(self, key, *, by=""):
        await self._obstacle("forget")
        await super().forget(key, by=by)

    async def load_identity(self, key):
        self.world.check_consent(key.organisation, "reads the identity")
        await self._obstacle("load")
        return await super().load_identity(key)

    async def save_identity(self, key, identity):
        self.world.check_consent(key.organisation, "writes the identity")
        await self._obstacle("save")
        await super().save_identity(key, identity)

    async def _obstacle(self, action: str) -> None:
        if self.slow:
            future = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            await future
        if self.failing:
            raise ConsentStoreError(action, "the model's store", "it fails as told.")

    def go_on(self) -> None:
        self.slow = False
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()


class CheckingEdge(RecordingEdge):
    """Looks at each request in the moment it starts."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def note(self, recorded) -> None:
        super().note(recorded)
        self.world.check_request(recorded)


class World:
    """Holds the people, and collects what must never happen."""

    def __init__(self, clock) -> None:
        self.clock = clock
        self.people = {name: Person(name) for name in ("one@AdobeOrg", "two@AdobeOrg")}
        self.store = FaultyStore(self)
        self.edge = CheckingEdge(self)
        self.shelf = MemoryShelf()
        self.violations: list[str] = []
        self.identities: dict[str, str] = {}
        self.left_behind: dict[str, set[int]] = {name: set() for name in self.people}
        self.arrived: dict[str, list[int]] = {name: [] for name in self.people}

    def outbox(self) -> MemoryOutbox:
        """Return an outbox for one more worker; all share their events."""
        return MemoryOutbox(self.shelf, clock=self.clock, max_events=MAX_QUEUED + MAX_PARKED)

    def kept_numbers(self, organisation: str) -> set[int]:
        """Return the numbers of a person's events that are on the shelf, of whatever worker."""
        return {
            int(json.loads(event.body)["xdm"]["eventType"].partition(" ")[2])
            for worker in self.shelf.workers
            for event in worker.events.values()
            if event.visitor.organisation == organisation
        }

    async def refuse_elsewhere(self, organisation: str) -> None:
        """Let another process refuse for a person: events first, then the choice, as ours does."""
        other = self.outbox()
        await other.open()
        key = VisitorKey(organisation, f"datastream-{organisation.removesuffix('@AdobeOrg')}")
        await other.erase(key)
        await other.aclose()
        now = self.clock.time()
        await MemoryStore.save_preference(self.store, key, Preference("none", now, now + MAX_AGE))

    def check_consent(self, organisation: str, deed: str) -> None:
        person = self.people[organisation]
        if not person.consents(self.store, self.clock.time()):
            self.violations.append(f"{organisation} {deed} without consent (said {person.said})")

    def check_request(self, recorded) -> None:
        organisation = recorded.query["configId"].replace("datastream-", "") + "@AdobeOrg"
        self.check_consent(organisation, "sends")
        for event in recorded.events:
            self._check_event(organisation, event)

    def _check_event(self, organisation: str, event: dict[str, Any]) -> None:
        owner, _, number = event["xdm"]["eventType"].partition(" ")
        call = self.people[organisation].calls[int(number)]
        if owner != organisation:
            self.violations.append(f"an event of {owner} travels as {organisation}")
        if call.refusals != self.people[organisation].refusals:
            self.violations.append(f"{organisation}: event {number} is sent although it was refused")
        if call.cancelled:
            self.violations.append(f"{organisation}: event {number} is sent although it was withdrawn")
        self._check_identity(organisation, event["xdm"]["identityMap"])
        self._check_order(organisation, int(number))

    def _check_identity(self, organisation: str, identity_map: dict[str, Any]) -> None:
        for entry in identity_map.get("FPID", []):
            if self.identities.setdefault(entry["id"], organisation) != organisation:
                self.violations.append(f"{organisation} carries the identity of another person")

    def _check_order(self, organisation: str, number: int) -> None:
        arrived = self.arrived[organisation]
        if number in self.left_behind[organisation]:
            return  # by a process that was killed: it comes when that process's lease has run out
        if number not in arrived:  # sent again without the event that the edge refused: in order all the same
            if arrived and number < max(arrived):
                self.violations.append(f"{organisation}: event {number} is overtaken")
            arrived.append(number)
